"""Kernels that read the attention context on one rank: FLOPs and bytes that the sums of
:mod:`simulator.work.context` are multiplied with.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.mixers import ContextTerm
from simulator.config.model import ModelSpec
from simulator.work.context import NO_WINDOW
from simulator.work.layout import Layout
from simulator.work.memory import Precision

_STATE_CHUNK_TOKENS = 128
"""Prefill kernels of recurrent layers read and write the state once a chunk of tokens (Mamba-2's
SSD, arXiv:2405.21060)."""


class ContextKernel(NamedTuple):
    """One kernel of one mixer: FLOPs of a (query, key) pair and bytes of a cached entry, on one
    rank and in one layer.
    """

    mixer: str
    num_layers: int
    """Layers with this kernel's mixer."""
    window: int
    """Entries a token attends to at most; ``NO_WINDOW`` for the whole context."""
    """``NO_WINDOW`` for all of the context."""
    compression: int
    """Context tokens of one cached entry."""
    prefill_flops: float
    """FLOPs of one (query, key) pair in prefill."""
    decode_flops: float
    """FLOPs of one (query, key) pair in decode."""
    prefill_bytes: float
    """Bytes read for one cached entry in prefill."""
    decode_bytes: float
    """Bytes read for one cached entry in decode."""
    kind: Literal["heads", "latent", "state"] = "heads"
    """Content of a cached entry: keys and values of heads, one latent vector for all heads, or a
    recurrent layer's state."""
    kv_dtype: str = "bf16"
    slides: bool = False
    """Whether the window slides over neighbouring entries; otherwise any may be selected."""
    num_heads: float = 0.0
    """Query heads of one rank."""
    num_kv_heads: float = 0.0
    """Key-value heads of one rank."""
    prefill_token_bytes: float = 0.0
    """Bytes moved for a new prompt token whatever it attends to: queries, outputs, its keys and
    values before and when they are cached."""
    decode_token_bytes: float = 0.0
    """Bytes moved for a new decode token whatever it attends to."""
    appended: float = 0.0
    """Elements of a new token's key and value that one rank writes into the cache."""


def context_kernels(
    model: ModelSpec, layout: Layout, precision: Precision
) -> tuple[ContextKernel, ...]:
    """Context kernels of all layers of a model. A recurrent layer reads one entry: its state."""
    found: list[ContextKernel] = []
    for name, num_layers in Counter(
        mixer for mixer, _ in model.layer_names if mixer != "none"
    ).items():
        mixer = model.mixers[name]
        kernels = (
            context_kernel(term, layout.tp, precision.kv, precision.activations)
            for term in mixer.context_terms()
        )
        found += [one._replace(mixer=name, num_layers=num_layers) for one in kernels]
        state_bytes = mixer.state_elements() / layout.tp * BYTES_PER_ELEMENT["fp32"]
        if state_bytes:
            flops = mixer.recurrent_flops_per_token() / layout.tp
            chunk_bytes = 2 * state_bytes / _STATE_CHUNK_TOKENS
            found.append(
                ContextKernel(
                    name, num_layers, 1, 1, flops, flops, chunk_bytes, 2 * state_bytes, kind="state"
                )
            )
    return tuple(found)


def context_kernel(
    term: ContextTerm, tp: int, kv_dtype: str, activations: str = "bf16"
) -> ContextKernel:
    """Build the kernel of one attention term in one layer, on one of ``tp`` ranks."""
    num_shards = min(tp, term.num_shards)
    num_bytes = term.cached_elements_per_entry * BYTES_PER_ELEMENT[kv_dtype] / num_shards
    written = num_bytes if term.appended_elements else 0.0
    moved = BYTES_PER_ELEMENT[activations] / tp
    return ContextKernel(
        mixer="",
        num_layers=1,
        window=NO_WINDOW if term.window is None else term.window,
        compression=term.compression,
        prefill_flops=term.prefill_flops_per_pair / tp,
        decode_flops=term.decode_flops_per_pair / tp,
        prefill_bytes=num_bytes,
        decode_bytes=num_bytes,
        kind="latent" if term.is_latent else "heads",
        kv_dtype=kv_dtype,
        slides=term.window is not None and term.keeps_window_only,
        num_heads=term.num_heads / tp,
        num_kv_heads=term.num_shards / num_shards,
        prefill_token_bytes=term.prefill_moved_elements * moved + written,
        decode_token_bytes=term.decode_moved_elements * moved + written,
        appended=term.appended_elements / num_shards,
    )
