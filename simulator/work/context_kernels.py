"""What reading the context costs one rank, summed over layers: the coefficients that a step's sums
are multiplied with.
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
    """One kernel of one mixer. FLOPs are for a (query, key) pair, bytes for a cached entry, both of
    one rank and layer.
    """

    mixer: str
    num_layers: int
    window: int
    """``NO_WINDOW`` for all of the context."""
    compression: int
    prefill_flops: float
    decode_flops: float
    prefill_bytes: float
    decode_bytes: float
    kind: Literal["heads", "latent", "state"] = "heads"
    """What an entry holds: keys and values of heads, one latent vector for all heads, or a
    recurrent layer's state."""
    kv_dtype: str = "bf16"
    slides: bool = False
    """Whether the window slides over neighbouring entries; otherwise any may be selected."""
    num_heads: float = 0.0
    """Query heads."""
    num_kv_heads: float = 0.0
    prefill_token_bytes: float = 0.0
    """Moved for a new token whatever it sees: queries, outputs, its keys and values before and when
    they are cached."""
    decode_token_bytes: float = 0.0
    appended: float = 0.0
    """Numbers of a new token's key that are written into the cache."""


def context_kernels(
    model: ModelSpec, layout: Layout, precision: Precision
) -> tuple[ContextKernel, ...]:
    """Every context kernel of the model. A recurrent layer looks back one entry: its state."""
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
    """The kernel of one term in one layer, on one of ``tp`` ranks."""
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
