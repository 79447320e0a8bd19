"""Read a Hugging Face ``config.json`` as it is into the table that
:class:`~simulator.config.model.ModelSpec` validates.

The keys decide, not the name of the architecture: ``kv_lora_rank`` means latent attention,
``compress_ratios`` compressed attention, ``n_routed_experts`` routed experts.
:class:`~simulator.config._config_json.Convention` holds only what an architecture fixes in its code
and no key says, such as Qwen3's norms on queries and keys. An architecture without one loads when
its keys suffice, and is refused with the key that is missing, or that is not understood, when they
do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator.base.quantities import MOST_LAYERS
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.ffns.dense import DenseFFN
from simulator.config.ffns.moe import COUNT_KEYS, MoE
from simulator.config.mixers.compressed import CompressedAttention
from simulator.config.mixers.gated_delta_net import GatedDeltaNet
from simulator.config.mixers.gqa import GroupedQueryAttention
from simulator.config.mixers.mamba2 import Mamba2
from simulator.config.mixers.mla import LatentAttention

_MIXERS: dict[str, Callable[[ConfigKeys, str, int], Table]] = {
    "full": GroupedQueryAttention.read_config,
    "sliding": GroupedQueryAttention.read_config,
    "chunked": GroupedQueryAttention.read_config,
    "latent": LatentAttention.read_config,
    "window": CompressedAttention.read_config,
    "compressed": CompressedAttention.read_config,
    "linear": GatedDeltaNet.read_config,
    "mamba2": Mamba2.read_config,
}
"""Readers of mixers by the name of their layers, up to its hyphen."""
_FFNS: dict[str, Callable[[ConfigKeys, str], Table]] = {
    "dense": DenseFFN.read_config,
    "moe": MoE.read_config,
}
"""Readers of feed-forward blocks by the name of their layers, up to its hyphen."""


def model_table(config: Table, path: Path) -> Table:
    """The table of the model that ``config`` describes, multi-token-prediction modules and vision
    towers left out.

    Args:
        config: the content of a ``config.json``.
        path: where it was read from, named in errors and, without its ending, as the model's name.

    Raises:
        UserError: a key is missing, contradicts another one, or describes something that has no
            counterpart here.
    """
    read = ConfigKeys(config, path)
    hidden_size = read.size("hidden_size")
    num_layers = read.size("num_hidden_layers")
    if num_layers > MOST_LAYERS:
        raise read.error(
            f"num_hidden_layers must be at most {MOST_LAYERS:,} layers, got {num_layers:,}"
        )
    weight_dtype, expert_dtype = _read_dtypes(read)
    mixer_names, ffn_names = _list_mixers(read, num_layers), _list_ffns(read, num_layers)
    mixers = {
        name: _MIXERS[name.partition("-")[0]](read, name, hidden_size)
        for name in dict.fromkeys(mixer_names)
        if name != "none"
    }
    ffns = {
        name: _FFNS[name.partition("-")[0]](read, name)
        for name in dict.fromkeys(ffn_names)
        if name != "none"
    }
    ties = (
        read.flag("tie_word_embeddings")
        if read.find("tie_word_embeddings") is not None
        else read.convention.ties_embeddings
    )
    if ties is None:
        raise read.error("missing key 'tie_word_embeddings'")
    if not read.convention.is_rms_norm and read.find("rms_norm_eps") is None:
        raise read.error(
            "missing key 'rms_norm_eps': the kind of norm cannot be told for this architecture"
        )
    table: Table = {
        "name": path.parent.name if path.stem == "config" and path.parent.name else path.stem,
        "hidden_size": hidden_size,
        "vocab_size": read.size("vocab_size"),
        "mixers": mixers,
        "ffns": ffns,
        "layers": [{"pattern": list(zip(mixer_names, ffn_names, strict=True))}],
        "ties_embeddings": ties,
        "num_extra_parameters": _count_hyper_connections(read, hidden_size, num_layers),
        "weight_dtype": weight_dtype,
        "active_counts_embedding": read.convention.active_counts_embedding,
        "active_counts_head": read.convention.active_counts_head,
        "sources": {"all": str(path)},
    }
    if expert_dtype != weight_dtype and any(ffn["kind"] == "moe" for ffn in ffns.values()):
        table["expert_dtype"] = expert_dtype
    if read.size_or(0, "max_position_embeddings"):
        table["max_context_tokens"] = read.size("max_position_embeddings")
    read.refuse_unread_parts()
    return table


# The order of the layers


def _list_mixers(read: ConfigKeys, num_layers: int) -> list[str]:
    """The name of every layer's mixer, as :data:`_MIXERS` reads it."""
    hybrid = read.per_layer("hybrid_override_pattern", num_layers)
    types = read.per_layer("layer_types", num_layers)
    ratios = read.per_layer(
        "compress_ratios", num_layers, read.size_or(0, "num_nextn_predict_layers")
    )
    if hybrid is not None:
        return _translate(
            read,
            "hybrid_override_pattern",
            hybrid,
            {"M": "mamba2", "*": "full", "E": "none", "-": "none"},
        )
    if ratios is not None:
        return [f"compressed-{ratio}" if ratio else "window" for ratio in ratios]
    if read.find("kv_lora_rank") is not None:
        return ["latent"] * num_layers
    if types is not None:
        known = {f"{name}_attention": name for name in ("full", "sliding", "chunked", "linear")}
        return _translate(read, "layer_types", types, known)
    if read.find("full_attention_interval") is not None:
        return _list_mixed(read, "linear", num_layers, "full_attention_interval")
    if read.find("attention_chunk_size") is not None:
        if read.find(
            "no_rope_layers"
        ):  # 0 marks the layers without positions, which see everything (Llama 4)
            rotary = read.per_layer("no_rope_layers", num_layers) or ()
            return _translate(read, "no_rope_layers", rotary, {1: "chunked", 0: "full"})
        return _list_mixed(read, "chunked", num_layers, "no_rope_layer_interval")
    if read.find("sliding_window") is None or not read.flag("use_sliding_window", default=True):
        return ["full"] * num_layers
    if (
        read.find("sliding_window_pattern") is not None
        or read.convention.full_attention_every is not None
    ):
        return _list_mixed(read, "sliding", num_layers, "sliding_window_pattern")
    first_sliding = read.size_or(0, "max_window_layers") if read.find("use_sliding_window") else 0
    return ["full" if layer < first_sliding else "sliding" for layer in range(num_layers)]


def _list_mixed(read: ConfigKeys, name: str, num_layers: int, key: str) -> list[str]:
    """List ``name`` for all layers but every n-th, which has full attention."""
    interval = read.size_or(read.convention.full_attention_every or 0, key)
    if interval == 0:
        raise read.error(
            f"missing key 'layer_types': which layers have {name} attention cannot be told"
        )
    return ["full" if (layer + 1) % interval == 0 else name for layer in range(num_layers)]


def _translate(
    read: ConfigKeys, key: str, values: Sequence[Any], known: Mapping[Any, str]
) -> list[str]:
    for value in values:
        if value not in known:
            raise read.error(
                f"{key} holds {value!r}, which is not understood; known "
                f"are {', '.join(map(str, known))}"
            )
    return [known[value] for value in values]


def _list_ffns(read: ConfigKeys, num_layers: int) -> list[str]:
    """The name of every layer's feed-forward block: ``dense``, ``moe``, ``moe-hashed`` or
    ``none``.
    """
    hybrid = read.per_layer("hybrid_override_pattern", num_layers)
    if hybrid is not None:
        known = {"M": "none", "*": "none", "E": "moe", "-": "dense"}
        return _translate(read, "hybrid_override_pattern", hybrid, known)
    if not read.size_or(0, *COUNT_KEYS):
        return ["dense"] * num_layers
    types = read.per_layer("mlp_layer_types", num_layers)
    if types is not None:
        return _translate(read, "mlp_layer_types", types, {"dense": "dense", "sparse": "moe"})
    num_hashed = read.size_or(0, "num_hash_layers")
    return [
        ("moe-hashed" if layer < num_hashed else "moe") if is_sparse else "dense"
        for layer, is_sparse in enumerate(_find_sparse_layers(read, num_layers))
    ]


def _find_sparse_layers(read: ConfigKeys, num_layers: int) -> list[bool]:
    """Whether each layer has routed experts, in the three ways that configurations say so."""
    frequency = read.find("moe_layer_freq")
    if isinstance(frequency, list):
        return [bool(value) for value in read.per_layer("moe_layer_freq", num_layers) or ()]
    num_dense = read.size_or(0, "first_k_dense_replace")
    frequency = read.size_or(1, "moe_layer_freq")
    step = read.size_or(1, "decoder_sparse_step", "interleave_moe_layer_step")
    dense_layers = read.find("mlp_only_layers") or []
    if frequency == 0 or step == 0 or not isinstance(dense_layers, list):
        raise read.error(
            "moe_layer_freq and decoder_sparse_step must be 1 or more, mlp_only_layers a list"
        )
    return [
        layer >= num_dense
        and layer % frequency == 0
        and (layer + 1) % step == 0
        and layer not in dense_layers
        for layer in range(num_layers)
    ]


def _count_hyper_connections(read: ConfigKeys, hidden_size: int, num_layers: int) -> int:
    """Parameters of manifold-constrained hyper-connections (arXiv:2512.24880), two a layer and one
    before the output.

    With ``m`` residual streams each maps ``m * hidden_size`` numbers to ``m * (m + 2)`` weights,
    with a base each and 3 scales.
    """
    streams = read.size_or(0, "hc_mult")
    if not streams:
        return 0
    weights, width = streams * (streams + 2), streams * hidden_size
    return 2 * num_layers * (weights * (width + 1) + 3) + streams * (width + 1) + 1


# Number formats

_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "fp8": "fp8_block",
    "fp4": "mxfp4",
}
_QUANTIZED = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "fp8 modelopt": "fp8",
    "nvfp4 modelopt": "nvfp4",
    "gptq 4": "int4",
    "gptq 8": "int8",
    "awq 4": "int4",
    "compressed-tensors int 4": "int4",
    "compressed-tensors int 8": "int8",
    "compressed-tensors float 4": "nvfp4",
    "compressed-tensors float 8": "fp8",
}


def _read_dtypes(read: ConfigKeys) -> tuple[str, str]:
    """Formats of the weights and of the routed experts as released."""
    quantization = read.find("quantization_config")
    if quantization is None:
        weight = _DTYPES.get(str(read.find("torch_dtype", "dtype")))
        if weight is None:
            raise read.error(
                "missing key 'torch_dtype' (or dtype), one of bfloat16, float16, float32; "
                "and no quantization_config"
            )
        experts = weight
    elif not isinstance(quantization, dict):
        raise read.error(f"quantization_config must be a table, got {quantization!r}")
    else:
        experts = _read_quantized(read, quantization)
        kept = [
            *(quantization.get("modules_to_not_convert") or ()),
            *(quantization.get("ignore") or ()),
        ]
        # Where attention keeps its format only the experts are quantized (gpt-oss,
        # Kimi-K2-Thinking); they are released as bf16.
        weight = "bf16" if any("attn" in str(name) for name in kept) else experts
    named = read.find("expert_dtype")
    if named is not None and str(named) not in _DTYPES:
        raise read.error(
            f"expert_dtype '{named}' is not understood; choose one of: {', '.join(_DTYPES)}"
        )
    return weight, experts if named is None else _DTYPES[str(named)]


def _read_quantized(read: ConfigKeys, quantization: Table) -> str:
    method, group = quantization.get("quant_method"), quantization
    if method == "compressed-tensors":
        groups: list[Table] = [*(quantization.get("config_groups") or {}).values()]
        group = (groups[0].get("weights") or {}) if groups else {}
    facts = (
        quantization.get("quant_algo"),
        method,
        group.get("type"),
        group.get("num_bits") or group.get("bits"),
    )
    shown = " ".join(str(fact).lower() for fact in facts if fact is not None)
    if shown not in _QUANTIZED:
        known = ", ".join(sorted(_QUANTIZED))
        raise read.error(
            f"quantization_config describes '{shown}', which is not understood; "
            f"choose one of: {known}"
        )
    found = _QUANTIZED[shown]
    return "fp8_block" if found == "fp8" and quantization.get("weight_block_size") else found
