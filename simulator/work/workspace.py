"""Temporary bytes of one rank while it computes a step, from the shapes of the arrays."""

from __future__ import annotations

from simulator.config.model import ModelSpec
from simulator.work.layout import Layout

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
