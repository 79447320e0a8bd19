"""One decode step of a whole model, whatever the machine: FLOPs, and bytes that are read."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.model import ModelSpec
from simulator.work.flops import matmul_flops_per_token
from simulator.work.layout import Layout
from simulator.work.memory import Precision, cache_size, weight_bytes

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
        num_sequences * flops,
        always + used,
        num_sequences * cache.bytes_for(context_tokens),
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
