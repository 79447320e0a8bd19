"""FLOPs that served tokens need whatever the deployment: the numerator of model FLOPs utilisation
(MFU).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from simulator.config.model import ModelSpec
from simulator.work.context import NO_WINDOW, total_pairs


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


def served_flops(
    model: ModelSpec,
    num_input: NDArray[np.int64],
    num_output: NDArray[np.int64],
    num_cached: NDArray[np.int64],
) -> float:
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
