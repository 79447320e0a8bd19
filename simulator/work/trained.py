"""Counts of a training step on one rank: parameters, and activations that the backward pass
needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

from simulator.config.ffns import FFN
from simulator.config.linear import Linear
from simulator.config.mixers import Mixer
from simulator.config.model import ModelSpec
from simulator.work.layout import Layout, shard

Recompute = Literal["none", "selective", "experts", "full"]


class Chunk(NamedTuple):
    """Consecutive layers of a pipeline stage; none where it has the embedding table or the output
    matrix alone.
    """

    layers: range
    has_embedding: bool
    has_head: bool
    """Whether the last norm and the output matrix are behind the layers."""


class ParameterCount(NamedTuple):
    """Parameters on one rank. Their gradients are added up over other groups of ranks."""

    dense: float
    """Parameters outside routed experts."""
    expert: float
    """Parameters of routed experts."""


class Kept(NamedTuple):
    """Numbers that a layer's forward pass keeps for its backward pass, over all tensor-parallel
    ranks.
    """

    per_token: float
    per_pair: float
    """Numbers for each token-expert pair."""


def cut_chunks(counts: Sequence[int]) -> tuple[Chunk, ...]:
    """Cut a model into chunks of so many layers: the embedding table is with the first one, the
    output matrix with the last.
    """
    ends = pairwise(accumulate(counts, initial=0))
    last = len(counts) - 1
    return tuple(
        Chunk(range(first, end), number == 0, number == last)
        for number, (first, end) in enumerate(ends)
    )


def count_weights(linears: Iterable[Linear], tp: int) -> float:
    """Count the numbers in matrices on one rank."""
    shards = (shard(linear, tp) for linear in linears)
    return float(sum(inputs * outputs * copies for inputs, outputs, copies in shards))


class Operands(NamedTuple):
    """Numbers of a token in the tensors that products read beside weights, on one rank: each
    tensor once, whatever the number of products.
    """

    behind_norm: float
    """Inputs that a norm makes."""
    inputs: float
    """Other inputs."""
    gradients: float
    """Gradients of outputs."""


def count_operands(linears: Iterable[Linear], hidden_size: int, tp: int) -> Operands:
    """Count the operands of a block's products, the router's aside, which stay in 16 bits.

    Vectors as wide as the model are shared out among tensor-parallel ranks (sequence parallelism),
    as are those that these split.
    """
    own = [linear for linear in linears if linear.name != "router"]
    shards = [(linear, *shard(linear, tp)) for linear in own]
    reads_norm = any(one.split != "row" and one.in_features == hidden_size for one in own)
    # Matrices that split their inputs, and those side by side, read a tensor of their own.
    apart = sum(k * copies for one, k, _, copies in shards if one.split == "row" or copies > 1)
    common = {k for one, k, _, copies in shards if one.split != "row" and copies == 1}
    return Operands(
        behind_norm=hidden_size / tp if reads_norm else 0.0,
        inputs=float(apart + sum(common - {hidden_size})),
        gradients=sum(
            n * copies / (tp if one.split == "row" else 1) for one, _, n, copies in shards
        ),
    )


def count_parameters(model: ModelSpec, layout: Layout, chunk: Chunk) -> ParameterCount:
    """Count the parameters of a chunk on one rank.

    The first and the last of several chunks each hold a tied embedding table.
    """
    dense = expert = 0.0
    if chunk.has_embedding:
        dense += model.num_extra_parameters + model.num_embedding_parameters / layout.tp
    if chunk.has_head:
        dense += model.norm_vectors * model.hidden_size
        dense += _count_head(model, chunk.has_embedding) / layout.tp
    for mixer_name, ffn_name in model.layer_names[chunk.layers.start : chunk.layers.stop]:
        if mixer_name != "none":
            dense += _count_block(model, model.mixers[mixer_name], layout.tp)
        if ffn_name != "none":
            ffn = model.ffns[ffn_name]
            dense += _count_block(model, ffn, layout.tp)
            if ffn.experts is not None:
                own = -(-ffn.experts.num_experts // layout.ep)
                each = ffn.experts.num_expert_parameters(model.hidden_size)
                expert += own * each / layout.moe_tp
    return ParameterCount(dense, expert)


def _count_head(model: ModelSpec, is_first: bool) -> int:
    if model.ties_embeddings:
        return 0 if is_first else model.num_embedding_parameters
    return model.num_head_parameters


def _count_block(model: ModelSpec, block: Mixer | FFN, tp: int) -> float:
    """Count a block's parts on one rank with its norm, routed experts left out."""
    total = float(model.norm_vectors * model.hidden_size)
    total += block.num_small_parameters(model.hidden_size)
    return total + count_weights(block.linears(model.hidden_size), tp)


def count_kept(model: ModelSpec, mixer_name: str, ffn_name: str, recompute: Recompute) -> Kept:
    """Count what a layer keeps: inputs of norms and matrices, queries, keys, values and outputs of
    attention, and what the activation function reads (Korthikanti et al., arXiv:2205.05198, section
    4.1, with attention that keeps no scores, and a gate that is one kernel with its activation).

    ``selective`` leaves out the outputs of norms and of activation functions, ``experts`` what
    token-expert pairs keep as well, ``full`` all but the layer's input.
    """
    hidden = model.hidden_size
    if recompute == "full":
        return Kept(float(hidden), 0.0)
    per_token = per_pair = 0.0
    keeps_all = recompute == "none"
    if mixer_name != "none":
        per_token += hidden + hidden * keeps_all
        per_token += _count_mixer(model.mixers[mixer_name], hidden)
    if ffn_name != "none":
        ffn = model.ffns[ffn_name]
        per_token += hidden + hidden * keeps_all
        per_token += _count_inner(ffn, hidden, keeps_all)
        if ffn.experts is not None and recompute != "experts":
            up, _ = ffn.experts.expert_linears(hidden)
            per_pair += hidden + up.out_features + ffn.experts.intermediate_size * keeps_all
    return Kept(per_token, per_pair)


def _count_mixer(mixer: Mixer, hidden: int) -> float:
    """Count what attention keeps, and inputs of matrices that are not the norm's output. Mixers
    without attention keep the outputs of their matrices.
    """
    linears, terms = mixer.linears(hidden), mixer.context_terms()
    inner = [linear for linear in linears if linear.in_features != hidden and linear.split != "row"]
    kept = float(sum({linear.in_features for linear in inner}))
    if terms:
        return kept + terms[0].prefill_moved_elements
    return kept + sum(linear.out_features * linear.copies for linear in linears)


def _count_inner(ffn: FFN, hidden: int, keeps_all: bool) -> float:
    """Count what the matrices keep that every token passes through, a router's aside."""
    up = sum(
        linear.out_features
        for linear in ffn.linears(hidden)
        if linear.split == "column" and linear.copies == 1
    )
    return up + ffn.inner_width * keeps_all
