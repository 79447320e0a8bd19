"""Bytes that one rank must hold: weights, KV cache, recurrent state, workspace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.ffns.moe import MoE
from simulator.config.linear import Linear
from simulator.config.model import LayerRun, ModelSpec
from simulator.config.sparsity import Pruning, choose_dense, choose_experts, stored_bytes
from simulator.policies.speculation import Drafts
from simulator.work.layout import Layout, shard, stage_layers

_NO_DRAFTS = Drafts()


@dataclass(frozen=True)
class Precision:
    """Number formats of one deployment, by what is stored or sent in them."""

    weights: str
    """Matrices other than routed experts."""
    experts: str
    """Routed experts."""
    kv: str
    """KV cache."""
    dispatch: str
    """Hidden vectors on their way to experts."""
    combine: str
    """Expert outputs on their way back."""

    @property
    def activations(self) -> str:
        """Hidden vectors inside a rank and in all-reduces."""
        return "fp32" if self.weights == "fp32" else "bf16"


def weight_bytes(
    model: ModelSpec,
    layout: Layout,
    precision: Precision,
    pruning: Pruning | None = None,
    num_slots: int | None = None,
    padded_to: tuple[int, int] = (1, 1),
    drafts: Drafts = _NO_DRAFTS,
) -> float:
    """Bytes of weights on the fullest rank of the fullest stage. Embeddings, norms, biases and the
    router stay in bf16, as engines keep them.

    Args:
        num_slots: expert slots of a layer on all ranks together, where some hold copies.
        padded_to: multiples that a rank's part of the experts' inner width, and the experts' hidden
            width, are rounded up to.
        drafts: whose module, on every stage, has weights too.
    """
    stored = (layout, precision, pruning, num_slots, padded_to)
    stages = stage_layers(model.num_layers, layout.pp)
    whole = max(_stage_bytes(model, layers, *stored) for layers in stages)
    if not drafts.num_layers:
        return whole
    module = make_module(model, drafts)
    # The embedding table is the model's, and the output matrix unless the module has its own.
    shared = module.num_embedding_parameters * (1 if drafts.vocab_size else 2)
    shared_bytes = shared / layout.tp * BYTES_PER_ELEMENT["bf16"]
    return whole + _stage_bytes(module, range(module.num_layers), *stored) - shared_bytes


def _stage_bytes(
    model: ModelSpec,
    layers: range,
    layout: Layout,
    precision: Precision,
    pruning: Pruning | None,
    num_slots: int | None,
    padded_to: tuple[int, int],
) -> float:
    """Bytes of weights on one rank of one stage. The first stage holds the embedding table, the
    last one the output matrix, also where it is tied to the embedding.
    """
    bf16 = BYTES_PER_ELEMENT["bf16"]
    is_first, is_last = layers.start == 0, layers.stop == model.num_layers
    has_own_head = is_last and not (is_first and model.ties_embeddings)
    head = (model.num_head_parameters or model.num_embedding_parameters) if has_own_head else 0
    total = (model.num_embedding_parameters * is_first + head) / layout.tp * bf16
    total += model.num_extra_parameters * is_first * bf16
    bytes_of: dict[tuple[str, str], list[float]] = {}
    for names in model.layer_names[layers.start : layers.stop]:
        if names not in bytes_of:
            bytes_of[names] = list(
                _layer_bytes(model, layout, *names, precision, pruning, num_slots, padded_to)
            )
        for part in bytes_of[names]:
            total += part
    return total


def make_module(model: ModelSpec, drafts: Drafts) -> ModelSpec:
    """The module that drafts for a model: layers like its last ones behind a projection of a
    token's hidden vector and its successor's embedding (arXiv:2412.19437, eq. 21), and an output
    matrix.
    """
    keys = {name: getattr(model, name) for name in ModelSpec.model_fields}
    last = LayerRun(pattern=model.layer_names[-drafts.num_layers :])
    for place, key in enumerate(("mixers", "ffns")):
        named = {layer[place] for layer in last.pattern}
        keys[key] = {name: part for name, part in keys[key].items() if name in named}
    keys |= {
        "layers": (last,),
        "vocab_size": drafts.vocab_size or model.vocab_size,
        "ties_embeddings": False,
        "num_positions": 0,
        "num_extra_parameters": 2 * model.hidden_size**2,
    }
    return ModelSpec(**keys)


def _layer_bytes(
    model: ModelSpec,
    layout: Layout,
    mixer_name: str,
    ffn_name: str,
    precision: Precision,
    pruning: Pruning | None,
    num_slots: int | None,
    padded_to: tuple[int, int],
) -> Iterator[float]:
    """Bytes of a layer's norms and of each part of its mixer and feed-forward block."""
    bf16 = BYTES_PER_ELEMENT["bf16"]
    yield 2 * model.norm_vectors * model.hidden_size * bf16
    if mixer_name != "none":
        mixer = model.mixers[mixer_name]
        yield linear_bytes(mixer.linears(model.hidden_size), layout.tp, precision.weights)
        yield mixer.num_small_parameters(model.hidden_size) * bf16
    if ffn_name != "none":
        ffn = model.ffns[ffn_name]
        own = choose_dense(pruning) if ffn.is_prunable else None
        yield linear_bytes(ffn.linears(model.hidden_size), layout.tp, precision.weights, own)
        if ffn.experts is not None:
            padded = padding_factor(ffn.experts, model.hidden_size, layout, padded_to)
            yield padded * expert_bytes_per_layer(
                ffn.experts, model.hidden_size, layout, precision, num_slots, pruning
            )


def linear_bytes(
    linears: tuple[Linear, ...], tp: int, dtype: str, pruning: Pruning | None = None
) -> float:
    """Bytes of one rank's parts of matrices; of pruned ones, the remaining values and their
    indices.
    """
    total = 0.0
    for linear in linears:
        in_features, out_features, copies = shard(linear, tp)
        if pruning is not None:
            total += (
                stored_bytes(pruning, out_features, in_features, BYTES_PER_ELEMENT[dtype]) * copies
            )
            continue
        total += (
            in_features
            * out_features
            * copies
            * BYTES_PER_ELEMENT["bf16" if linear.name == "router" else dtype]
        )
    return total


def expert_bytes_per_layer(
    moe: MoE,
    hidden_size: int,
    layout: Layout,
    precision: Precision,
    num_slots: int | None = None,
    pruning: Pruning | None = None,
) -> float:
    """Bytes of one layer's routed experts on the fullest rank, with copies where there are more
    slots than experts; of pruned ones, the remaining values and their indices.
    """
    slots = -(-(moe.num_experts if num_slots is None else num_slots) // layout.ep)
    own, size = choose_experts(pruning), BYTES_PER_ELEMENT[precision.experts]
    if own is None:
        return slots * moe.num_expert_parameters(hidden_size) / layout.moe_tp * size
    linears = moe.expert_linears(hidden_size)
    biases = moe.num_expert_parameters(hidden_size) - sum(one.num_parameters for one in linears)
    matrices = linear_bytes(linears, layout.moe_tp, precision.experts, own)
    return slots * (matrices + biases / layout.moe_tp * size)


def expert_bytes(
    model: ModelSpec, layout: Layout, precision: Precision, pruning: Pruning | None = None
) -> float:
    """Bytes of one routed expert on one rank; 0 of a dense model."""
    if model.moe is None:
        return 0.0
    return expert_bytes_per_layer(
        model.moe, model.hidden_size, layout, precision, layout.ep, pruning
    )


def padding_factor(moe: MoE, hidden_size: int, layout: Layout, padded_to: tuple[int, int]) -> float:
    """Ratio of the bytes of padded experts to those of unpadded ones.

    >>> gpt_oss = MoE(kind="moe", num_experts=128, top_k=4, intermediate_size=2880)
    >>> round(padding_factor(gpt_oss, 2880, Layout(1, 1, 1), (128, 256)), 4)
    1.0904
    """
    inner, parts = moe.intermediate_size, layout.moe_tp
    part, hidden = (
        -(-width // multiple) * multiple
        for width, multiple in zip((-(-inner // parts), hidden_size), padded_to, strict=True)
    )
    return part * parts / inner * hidden / hidden_size


@dataclass(frozen=True)
class CacheSize:
    """Cache of one sequence on one rank."""

    bytes_per_token: float
    """Bytes that grow with the sequence's tokens."""
    bytes_per_sequence: float
    """Bytes of a sequence whatever its length: recurrent state, and the windows of sliding layers
    when full."""

    def bytes_for(self, num_tokens: int) -> float:
        """Bytes of a sequence of ``num_tokens`` tokens."""
        return self.bytes_per_token * num_tokens + self.bytes_per_sequence


def cache_size(
    model: ModelSpec, layout: Layout, precision: Precision, drafts: Drafts = _NO_DRAFTS
) -> CacheSize:
    """Cache of one sequence on one rank, over all layers of the stage that needs most and those of
    the module that drafts.
    """
    found = [
        _stage_cache(model, layout, layers, precision)
        for layers in stage_layers(model.num_layers, layout.pp)
    ]
    first = model.num_layers - drafts.num_layers
    module = _stage_cache(model, layout, range(first, model.num_layers), precision)
    return CacheSize(
        max(one.bytes_per_token for one in found) + module.bytes_per_token,
        max(one.bytes_per_sequence for one in found) + module.bytes_per_sequence,
    )


def _stage_cache(
    model: ModelSpec, layout: Layout, layers: range, precision: Precision
) -> CacheSize:
    element = BYTES_PER_ELEMENT[precision.kv]
    per_token = per_sequence = 0.0
    for mixer_name, _ in model.layer_names[layers.start : layers.stop]:
        if mixer_name == "none":
            continue
        mixer = model.mixers[mixer_name]
        per_sequence += mixer.state_elements() / layout.tp * BYTES_PER_ELEMENT["fp32"]
        for term in mixer.context_terms():
            share = term.cached_elements_per_entry * element / min(layout.tp, term.num_shards)
            if term.window is not None and term.keeps_window_only:
                per_sequence += share * term.window
            else:
                per_token += share / term.compression
    return CacheSize(per_token, per_sequence)


_PADDED_TO = 64
"""Multiple that the rows of the vocabulary are padded to (``DEFAULT_VOCAB_PADDING_SIZE`` in vLLM
and SGLang)."""
_ELEMENT, _FLOAT = 2, 4
"""Bytes of an activation (bf16) and of a score (fp32)."""


def logits_bytes(model: ModelSpec, num_sequences: int) -> float:
    """Bytes of the scores of every vocabulary token for each sequence, in 32 bits: every rank gets
    all.

    >>> from simulator.config.model import load_model
    >>> round(logits_bytes(load_model("llama-3.1-8b", "here"), 1024) / 2**30, 3)
    0.489
    """
    vocabulary = -(-model.vocab_size // _PADDED_TO) * _PADDED_TO
    return float(num_sequences * vocabulary * _FLOAT)


def forward_bytes(model: ModelSpec, layout: Layout, num_tokens: int) -> float:
    """Bytes of a step's activations: four hidden vectors a token (the residual, a norm's output,
    the block's input and output) and the inner vectors of the widest dense block, gate and product.
    """
    widths = [ffn.inner_width for ffn in model.ffns.values() if ffn.experts is None]
    inner = 3 * max(widths, default=0) / layout.tp
    return num_tokens * (inner + 4 * model.hidden_size) * _ELEMENT


def expert_workspace_bytes(model: ModelSpec, layout: Layout, num_tokens: int) -> float:
    """Bytes of two arrays with a row for each chosen expert of each token: input or output of the
    second product, and output of the first (vLLM ``TritonExperts.workspace_shapes``).
    """
    moe = model.moe
    if moe is None:
        return 0.0
    inner, hidden = moe.intermediate_size / layout.moe_tp, model.hidden_size
    first = max(inner, hidden)
    second = max(inner * (2 if moe.is_gated else 1), hidden)
    return num_tokens * moe.top_k * (first + second) * _ELEMENT
