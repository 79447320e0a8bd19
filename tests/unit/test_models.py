import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.mixers.compressed import CompressedAttention
from simulator.config.model import ModelSpec, load_model

# Elements of the released weights (safetensors headers on Hugging Face, multi-token-prediction and
# vision left out), counted by others than this project; biases for balance are among them where the
# files store them.
RELEASED = {
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "deepseek-v3": 671_026_419_200,
    "deepseek-v2-lite": 15_706_484_224,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    # Its 23 x 128 biases for balance are buffers and not in the published count.
    "nemotron-3-nano-30b-a3b": 31_577_937_344 + 23 * 128,
}


@pytest.mark.parametrize(("name", "num_parameters"), RELEASED.items())
def test_total_is_that_of_the_released_weights_to_the_last_parameter(name, num_parameters):
    assert load_model(name, "test").num_parameters == num_parameters


def test_active_parameters_leave_out_what_the_makers_leave_out():
    def count(**keys):
        return ModelSpec.model_validate({**TINY, **keys}).num_active_parameters

    table = 100 * 16
    assert count() - count(active_counts_embedding=False) == table
    assert (
        count(active_counts_embedding=False)
        - count(active_counts_embedding=False, active_counts_head=False)
        == table
    )
    # One table that is embedding and output matrix at once is used by every token.
    assert count(ties_embeddings=True) == count(ties_embeddings=True, active_counts_embedding=False)


TINY = {
    "name": "tiny",
    "hidden_size": 16,
    "vocab_size": 100,
    "mixers": {"full": {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_size": 8}},
    "ffns": {"moe": {"kind": "moe", "num_experts": 8, "top_k": 2, "intermediate_size": 32}},
    "layers": [{"repeat": 3, "pattern": [["full", "moe"]]}],
}


FULL, EXPERTS = TINY["mixers"]["full"], TINY["ffns"]["moe"]
FEWER = {**EXPERTS, "num_experts": 4}
BOTH = [{"pattern": [["full", "moe"], ["full", "other"]]}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ffns": {"moe": {**EXPERTS, "top_k": 9}}}, r"top_k \(9\) must be between 1 and"),
        ({"layers": [{"pattern": [["full", "dense"]]}]}, "layers name the ffn 'dense'"),
        ({"layers": [{"pattern": [["full", "none"]]}]}, "ffns has 'moe', which no layer has"),
        ({"mixers": {"full": {**FULL, "num_kv_heads": 3}}}, r"num_kv_heads \(3\) must divide"),
        ({"ffns": {"moe": EXPERTS, "other": FEWER}, "layers": BOTH}, "the same num_experts"),
    ],
)
def test_a_wrong_model_file_is_one_line_with_file_and_key(change, said):
    with pytest.raises(UserError, match=rf"^tiny\.toml[^\n]*{said}[^\n]*$"):
        validate(ModelSpec, {**TINY, **change}, "tiny.toml")


def test_a_file_that_contradicts_its_makers_says_why_or_is_refused(tmp_path):
    shipped = (available_files("workloads/models")["qwen3-8b"]).read_text(encoding="utf-8")
    file = tmp_path / "own.toml"
    file.write_text(shipped.replace("repeat = 36", "repeat = 12"), encoding="utf-8")
    with pytest.raises(UserError, match=r"total_parameters \(8.2e\+09\) and .* \(3.56e\+09\)"):
        load_model("own.toml", "test", tmp_path)
    reason = '[published]\ndisagreement = "a third of it"'
    file.write_text(file.read_text(encoding="utf-8").replace("[published]", reason))
    assert load_model(str(file), "test").num_parameters == pytest.approx(3.56e9, rel=0.01)


def test_a_model_file_may_be_given_by_path(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'hidden_size = 16\nvocab_size = 100\nmixers.a = { kind = "gqa", num_heads = 2, '
        "num_kv_heads = 1, head_size = 8 }\n"
        'ffns.d = { kind = "dense", intermediate_size = 32 }\nlayers = [{ repeat = 2, '
        'pattern = [["a", "d"]] }]\n'
    )
    model = load_model("mine.toml", "test", tmp_path)
    assert (model.name, model.num_layers, model.moe) == ("mine", 2, None)


def test_compressed_attention_has_the_tensors_of_deepseek_v4_flash():
    heads = {"num_heads": 64, "head_size": 512, "query_rank": 1024, "window": 128}
    shape = {"kind": "compressed", **heads, "output_groups": 8, "output_rank": 1024}
    matrices = 4096 * 1024 + 1024 * 32768 + 4096 * 512 + 4096 * 8192 + 8192 * 4096
    attention = matrices + 1024 + 512 + 64  # norms, sinks
    compressor = 2 * 4096 * 1024 + 4 * 1024 + 512
    indexer = 1024 * 8192 + 4096 * 64 + 2 * 4096 * 256 + 4 * 256 + 128
    index = {"num_heads": 64, "head_size": 128, "top_k": 512}
    for keys, more in (
        ({}, 0),
        ({"compression": 4, "index": index}, compressor + indexer),
        ({"compression": 128}, 2 * 4096 * 512 + 128 * 512 + 512),
    ):
        found = CompressedAttention(**shape, **keys).num_parameters(4096)
        assert found == attention + more


# What is cached for a token, and what is carried by a sequence, against published figures.


def cached_bytes_per_token(name: str, num_bytes: int = 2) -> float:
    model = load_model(name, "test")
    terms = [
        term
        for mixer, _ in model.layer_names
        if mixer != "none"
        for term in model.mixers[mixer].context_terms()
    ]
    return num_bytes * sum(
        term.cached_elements_per_entry / term.compression for term in terms if term.window is None
    )


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("deepseek-v3", 70_272),  # arXiv:2505.09343, table 1: 70.272 KB
        ("llama-3.1-405b", 516_096),  # the same table: 516.096 KB
        ("mixtral-8x7b", 131_072),  # 2 x 8 heads x 128 x 32 layers, 2 bytes each
        ("nemotron-3-nano-30b-a3b", 6_144),  # 2 x 2 heads x 128 x 6 layers
    ],
)
def test_cache_grows_by_the_published_bytes_per_token(name, num_bytes):
    assert cached_bytes_per_token(name) == num_bytes


def test_recurrent_layers_carry_a_fixed_state_and_read_no_context():
    model = load_model("qwen3.5-35b-a3b", "test")
    linear = model.mixers["linear"]
    assert linear.context_terms() == ()
    assert linear.state_elements() == 32 * 128 * 128 + 3 * 8192
    assert linear.recurrent_flops_per_token() == 7 * 32 * 128 * 128 + 2 * 4 * 8192


def test_sparse_attention_adds_an_indexer_to_every_layer():
    model, dense = load_model("deepseek-v3.2", "test"), load_model("deepseek-v3", "test")
    # Queries from the latent, keys with a LayerNorm, and a weight for each of 64 heads.
    indexer = 1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64
    assert model.num_parameters - dense.num_parameters == 61 * indexer
    attended, scored = model.mixers["latent"].context_terms()
    assert (attended.window, scored.window) == (2048, None)
    assert scored.cached_elements_per_entry == 128


def test_what_is_printed_of_scout_counts_its_vision_tower():
    model = load_model("llama-4-scout", "test")
    layer = 4 * 1408**2 + 2 * 1408 * 5632  # configuration_llama4.py of transformers
    projector = 5632 * 4096 + 4096 * 4096 + 4096 * 5120
    tower = 34 * layer + projector + 3 * 14 * 14 * 1408
    assert model.num_parameters + tower == pytest.approx(109e9, rel=0.01)
    assert model.num_moe_layers == model.num_layers == 48


def test_what_is_printed_of_glm_leaves_embeddings_out_and_counts_its_prediction_layer():
    model = load_model("glm-4.6", "test")
    tables = model.num_embedding_parameters + model.num_head_parameters
    moe = model.ffns["moe"].num_parameters(5120)
    prediction = model.mixers["full"].num_parameters(5120) + moe + 2 * 5120**2
    assert model.num_parameters - tables + prediction == pytest.approx(355e9, rel=0.002)
