import json
from pathlib import Path

import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.config.model import load_model
from tests.shared import SHARED, each_shared, shared_file

CONFIGS = sorted((SHARED / "traces" / "formats" / "hf_configs").glob("*_config.json"))


def shipped_twin(config: Path):
    """The shipped model whose sources name the repository that ``config`` was read from."""
    repository = config.name.removesuffix("_config.json").replace("--", "/")
    models = [load_model(name, "test") for name in available_files("workloads/models")]
    return (
        next((model for model in models if f" {repository} " in model.sources["shape"] + " "), None)
        if models
        else None
    )


@pytest.mark.measured
@pytest.mark.parametrize("config", each_shared(CONFIGS), ids=lambda path: path.stem)
def test_a_real_config_gives_the_shipped_model_layer_by_layer(config):
    read = load_model(str(config), "test")
    shipped = shipped_twin(config)
    if shipped is None:
        pytest.skip("no shipped model names this repository")

    def layers(model):
        return [(model.mixers.get(mixer), model.ffns.get(ffn)) for mixer, ffn in model.layer_names]

    assert layers(read) == layers(shipped)
    assert read.num_parameters == shipped.num_parameters
    assert read.num_active_parameters == shipped.num_active_parameters
    for key in (
        "hidden_size",
        "vocab_size",
        "weight_dtype",
        "expert_dtype",
        "max_context_tokens",
        "num_extra_parameters",
    ):
        assert getattr(read, key) == getattr(shipped, key), key


@pytest.mark.measured
def test_a_config_of_another_program_is_refused_with_the_key_it_lacks():
    path = shared_file("traces/measured/llmservingsim_vllm_RTXPRO6000/Llama-3.1-8B/config.json")
    with pytest.raises(UserError, match=r"Llama-3.1-8B/config.json: missing key 'hidden_size'"):
        load_model(str(path), "test")


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MISTRAL = {**LLAMA, "model_type": "mistral", "vocab_size": 32000, "sliding_window": 4096}
QWEN2 = {
    **LLAMA,
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
GEMMA2 = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "torch_dtype": "float32",
}
MOE = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.fixture
def load(tmp_path):
    def load(config, **changes):
        path = tmp_path / "config.json"
        path.write_text(
            json.dumps(
                {key: value for key, value in {**config, **changes}.items() if value is not ...}
            )
        )
        return load_model(str(path), "test")

    return load


@pytest.mark.parametrize(
    (
        "config",
        "num_parameters",
    ),  # elements of the released weights: Llama 3.1 8B, Mistral 7B, Qwen2.5 7B, Gemma 2 9B
    [
        (LLAMA, 8_030_261_248),
        (MISTRAL, 7_241_732_096),
        (QWEN2, 7_615_616_512),
        (GEMMA2, 9_241_705_984),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_dense_architectures_count_to_the_last_parameter(load, config, num_parameters):
    assert load(config).num_parameters == num_parameters


OLMOE = {
    **LLAMA,
    "model_type": "olmoe",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 50304,
}
DEEPSEEK_V2_LITE = {
    **LLAMA,
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 102400,
}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (OLMOE, "olmoe-1b-7b"),
        (DEEPSEEK_V2_LITE, "deepseek-v2-lite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_older_moe_architectures_count_as_shipped(load, config, name):
    shipped, read = load_model(name, "test"), load(config)
    assert read.num_parameters == shipped.num_parameters
    assert read.num_moe_layers == shipped.num_moe_layers


def test_the_norms_on_queries_and_keys_can_be_switched_off(load):
    with_norms, without = (
        load(LLAMA, model_type="glm4_moe", use_qk_norm=True),
        load(LLAMA, model_type="glm4_moe", use_qk_norm=False),
    )
    assert with_norms.num_parameters - without.num_parameters == 32 * 2 * 128


def test_the_language_model_of_a_multimodal_one_is_read(load):
    nested = {
        "model_type": "llava",
        "vision_config": {"hidden_size": 1024},
        "text_config": LLAMA,
        "torch_dtype": "bfloat16",
    }
    assert load(nested).num_parameters == 8_030_261_248


def test_windows_are_where_the_configuration_puts_them(load):
    def mixers(config, **changes):
        return "".join(mixer[0] for mixer, _ in load(config, **changes).layer_names)

    assert mixers(MISTRAL) == "s" * 32
    assert mixers(QWEN2) == "f" * 28
    assert mixers(GEMMA2) == "sf" * 21
    assert mixers(QWEN2, use_sliding_window=True, max_window_layers=20) == "f" * 20 + "s" * 8


def test_dense_and_moe_layers_are_where_the_configuration_puts_them(load):
    def ffns(**changes):
        return "".join(
            ffn[0]
            for _, ffn in load(
                MOE, num_hidden_layers=6, moe_intermediate_size=64, **changes
            ).layer_names
        )

    assert ffns() == "mmmmmm"
    assert ffns(first_k_dense_replace=2) == "ddmmmm"
    assert ffns(first_k_dense_replace=1, moe_layer_freq=2) == "ddmdmd"
    assert ffns(decoder_sparse_step=2, mlp_only_layers=[5]) == "dmdmdd"
    assert ffns(moe_layer_freq=[0, 1, 1, 0, 1, 1]) == "dmmdmm"
    assert ffns(mlp_layer_types=["dense"] + ["sparse"] * 5) == "dmmmmm"


@pytest.mark.parametrize(
    ("quantization", "weights", "experts"),
    [
        (None, "bf16", None),
        ({"quant_method": "fp8"}, "fp8", None),
        ({"quant_method": "gptq", "bits": 4}, "int4", None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", None),
        (
            {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
            *("bf16", "mxfp4"),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                "ignore": ["lm_head", "re:.*self_attn.*"],
            },
            *("bf16", "int4"),
        ),
    ],
)
def test_formats_come_from_the_quantization(load, quantization, weights, experts):
    model = load(MOE, quantization_config=quantization or ...)
    assert (model.weight_dtype, model.expert_dtype) == (weights, experts)
    assert load(MOE, torch_dtype=..., dtype="float16").weight_dtype == "fp16"


def test_an_unknown_architecture_loads_when_its_keys_suffice(load):
    model = load(LLAMA, model_type="brand_new", architectures=["BrandNewForCausalLM"])
    assert model.num_parameters == 8_030_261_248


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": ...}, "missing key 'num_key_value_heads'"),
        ({"num_attention_heads": 31}, "missing key 'head_dim': num_attention_heads = 31"),
        ({"model_type": "new", "tie_word_embeddings": ...}, "missing key 'tie_word_embeddings'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "new", "use_qk_norm": True}, "use_qk_norm is true"),
        ({"layer_types": ["odd_attention"] * 32}, "layer_types holds 'odd_attention'"),
        ({"attention_chunk_size": 8192}, "missing key 'layer_types'"),
        ({"moe_num_experts": 64}, "key 'moe_num_experts'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
        ({"num_experts": 8, "num_local_experts": 16}, "contradictory keys: num_experts = 8"),
        ({"kv_lora_rank": 512}, "missing key 'qk_nope_head_dim'"),
    ],
)
def test_what_cannot_be_told_is_refused_with_file_and_key(load, changes, said):
    with pytest.raises(UserError, match=rf"^[^\n]*config\.json[^\n]*{said}[^\n]*$"):
        load(LLAMA, **changes)
