"""Natural sparsity: what of a model a batch of tokens leaves idle."""

from __future__ import annotations

from typing import NamedTuple

from simulator.config.model import ModelSpec
from simulator.work.decode_step import (
    WHOLE,
    count_decode_step,
    expert_bytes,
    release_precision,
    used_expert_share,
)
from simulator.work.flops import matmul_flops_per_token
from simulator.work.memory import weight_bytes


class IdleShares(NamedTuple):
    """Shares of a model that stay idle, each from 0 to 1; all are 0 in a dense model."""

    weights: float
    """Parameters that no token of the batch uses, of all."""
    compute: float
    """FLOPs that are saved, of those with every expert computed for every token; the batch does not
    matter."""
    read: float
    """Bytes of weights that are not read, of all that are stored, an embedding table left out."""


def count_idle(model: ModelSpec, num_tokens: int) -> IdleShares:
    """Count what a batch leaves idle where all experts are equally likely.

    >>> from simulator.config.model import load_model
    >>> mixtral = count_idle(load_model("mixtral-8x7b", "here"), 1)
    >>> [round(share, 3) for share in mixtral]
    [0.724, 0.726, 0.726]
    """
    moe = model.moe
    if moe is None:
        return IdleShares(0.0, 0.0, 0.0)
    unused = 1.0 - used_expert_share(moe.num_experts, moe.top_k, num_tokens)
    each = moe.num_expert_parameters(model.hidden_size)
    experts = model.num_moe_layers * moe.num_experts * each
    matrices = sum(one.num_parameters for one in moe.expert_linears(model.hidden_size))
    own = matmul_flops_per_token(model, with_head=True)
    skipped = 2.0 * model.num_moe_layers * (moe.num_experts - moe.top_k) * matrices
    step = count_decode_step(model, num_tokens, 1)
    stored = step.weight_bytes + expert_bytes(model) * unused
    return IdleShares(
        unused * experts / model.num_parameters,
        skipped / (own + skipped),
        1.0 - step.weight_bytes / stored,
    )


def stored_bytes_of(model: ModelSpec) -> float:
    """Bytes of all weights as released."""
    return weight_bytes(model, WHOLE, release_precision(model))
