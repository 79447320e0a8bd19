"""FLOPs that served tokens need, and FLOPs and bytes of a whole decode step."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Ints
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.model import ModelSpec
from simulator.work.context import NO_WINDOW, total_pairs
from simulator.work.layout import Layout
from simulator.work.memory import Precision, cache_size, weight_bytes


def matmul_flops_per_token(model: ModelSpec, *, with_head: bool) -> float:
    """FLOPs of all matrices that one token passes through: two for each weight, and ``top_k``
    routed experts of each MoE layer.

    Agrees with PyTorch's FLOP counter on the same layers, which leaves out norms and activations as
    well.
    """
    total = 2.0 * model.vocab_size * model.hidden_size if with_head else 0.0
    for mixer_name, ffn_name in model.layer_names:
        if mixer_name != "none":
            total += 2.0 * sum(
                linear.num_parameters
                for linear in model.mixers[mixer_name].linears(model.hidden_size)
            )
        if ffn_name != "none":
            ffn = model.ffns[ffn_name]
            total += 2.0 * sum(linear.num_parameters for linear in ffn.linears(model.hidden_size))
            experts = ffn.experts
            if experts is not None:
                weights = sum(
                    linear.num_parameters for linear in experts.expert_linears(model.hidden_size)
                )
                total += 2.0 * experts.top_k * weights
    return total


def served_flops(model: ModelSpec, num_input: Ints, num_output: Ints, num_cached: Ints) -> float:
    """FLOPs to serve all requests: prompt tokens that were not cached and every output token,
    attention included.

    The first output token comes out of the prefill, and the last one is never read again, so
    ``num_output - 1`` are computed.
    """
    decoded = num_output - 1
    fresh = num_input - num_cached
    total = float((fresh + decoded).sum()) * matmul_flops_per_token(model, with_head=False)
    total += float(num_output.sum()) * 2.0 * model.vocab_size * model.hidden_size
    for name, num_layers in Counter(
        mixer for mixer, _ in model.layer_names if mixer != "none"
    ).items():
        mixer = model.mixers[name]
        total += num_layers * mixer.recurrent_flops_per_token() * float((fresh + decoded).sum())
        for term in mixer.context_terms():
            window = NO_WINDOW if term.window is None else term.window
            total += (
                num_layers
                * term.prefill_flops_per_pair
                * total_pairs(num_cached, fresh, window, term.compression)
            )
            total += (
                num_layers
                * term.decode_flops_per_pair
                * total_pairs(num_input, decoded, window, term.compression)
            )
    return total


def trained_flops(model: ModelSpec, sequence_tokens: int) -> float:
    """FLOPs to train on one sequence, attention included: three times those of its forward pass,
    since the backward pass makes the gradients of inputs and of weights. Nothing that is computed
    again counts (PaLM, arXiv:2204.02311, appendix B).

    A causal token attends to those before it, so attention counts half of all pairs, as Megatron-LM
    counts since 2025; PaLM counted all.
    """
    fresh, none = np.array([sequence_tokens]), np.zeros(1, dtype=np.int64)
    total = sequence_tokens * matmul_flops_per_token(model, with_head=True)
    for name, num_layers in Counter(
        mixer for mixer, _ in model.layer_names if mixer != "none"
    ).items():
        mixer = model.mixers[name]
        total += num_layers * mixer.recurrent_flops_per_token() * sequence_tokens
        for term in mixer.context_terms():
            window = NO_WINDOW if term.window is None else term.window
            pairs = total_pairs(none, fresh, window, term.compression)
            total += num_layers * term.prefill_flops_per_pair * pairs
    return 3.0 * total


def expert_flops(model: ModelSpec) -> float:
    """FLOPs of routed experts to train on one token, by the counts of :func:`trained_flops`."""
    if model.moe is None:
        return 0.0
    weights = sum(linear.num_parameters for linear in model.moe.expert_linears(model.hidden_size))
    return 3.0 * 2.0 * model.moe.top_k * weights * model.num_moe_layers


WHOLE = Layout(1, 1, 1)
"""A model on one rank."""


class DecodeStep(NamedTuple):
    """Work of one decode step of some sequences."""

    flops: float
    """FLOPs of matrices and of attention over the context."""
    weight_bytes: float
    """Bytes of weights that are read: of routed experts those that a token of the step uses."""
    cache_bytes: float
    """Bytes of caches and recurrent states that are read."""


def release_precision(model: ModelSpec) -> Precision:
    """Number formats that a model is released in, with a cache in 16 bits."""
    experts = model.expert_dtype or model.weight_dtype
    return Precision(model.weight_dtype, experts, "bf16", "bf16", "bf16")


def used_expert_share(num_experts: int, top_k: int, num_tokens: int) -> float:
    """Expected share of a layer's experts that some token uses, where all are equally likely:
    ``1 - (1 - K / E)^T``. Any skew lowers it.

    >>> used_expert_share(8, 2, 1), round(used_expert_share(256, 8, 64), 3)
    (0.25, 0.869)
    """
    return 1.0 - (1.0 - top_k / num_experts) ** num_tokens


def expert_bytes(model: ModelSpec) -> float:
    """Bytes of all routed experts as released; 0 of a dense model."""
    if model.moe is None:
        return 0.0
    each = model.moe.num_expert_parameters(model.hidden_size)
    experts = model.num_moe_layers * model.moe.num_experts
    return experts * each * BYTES_PER_ELEMENT[release_precision(model).experts]


def count_decode_step(model: ModelSpec, num_sequences: int, context_tokens: int) -> DecodeStep:
    """Count the work of one decode step.

    Args:
        num_sequences: sequences of the step, one token each.
        context_tokens: tokens of each that are cached.
    """
    precision = release_precision(model)
    cache = cache_size(model, WHOLE, precision)
    used = 0.0
    if model.moe is not None:
        share = used_expert_share(model.moe.num_experts, model.moe.top_k, num_sequences)
        used = expert_bytes(model) * share
    always = weight_bytes(model, WHOLE, precision) - expert_bytes(model)
    if not model.ties_embeddings:  # of an embedding table of its own a row a token is read
        always -= model.num_embedding_parameters * BYTES_PER_ELEMENT["bf16"]
    flops = matmul_flops_per_token(model, with_head=True) + _attention_flops(model, context_tokens)
    return DecodeStep(
        num_sequences * flops, always + used, num_sequences * cache.bytes_for(context_tokens)
    )


def _attention_flops(model: ModelSpec, context_tokens: int) -> float:
    """FLOPs of one decoded token over its context, all layers."""
    total = 0.0
    layers = Counter(mixer for mixer, _ in model.layer_names if mixer != "none")
    for name, num_layers in layers.items():
        mixer = model.mixers[name]
        total += num_layers * mixer.recurrent_flops_per_token()
        for term in mixer.context_terms():
            seen = context_tokens // term.compression
            pairs = seen if term.window is None else min(seen, term.window)
            total += num_layers * term.decode_flops_per_pair * pairs
    return total
