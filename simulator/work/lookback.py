"""What reading the context costs one rank, summed over layers: the coefficients that a step's sums are multiplied with."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from simulator.spec.dtypes import BYTES_PER_ELEMENT
from simulator.spec.model import ModelSpec
from simulator.work.context import NO_WINDOW
from simulator.work.layout import Layout
from simulator.work.memory import Precision

_STATE_CHUNK_TOKENS = 128
"""Prefill kernels of recurrent layers read and write the state once a chunk of tokens (Mamba-2's SSD, arXiv:2405.21060)."""


class Lookback(NamedTuple):
    """One kernel of one mixer. FLOPs are for a (query, key) pair, bytes for a cached entry, both of one rank and layer."""

    mixer: str
    num_layers: int
    window: int
    """``NO_WINDOW`` for all of the context."""
    compression: int
    prefill_flops: float
    decode_flops: float
    prefill_bytes: float
    decode_bytes: float


def lookbacks(model: ModelSpec, layout: Layout, precision: Precision) -> tuple[Lookback, ...]:
    """Every context kernel of the model. A recurrent layer looks back one entry: its state."""
    element = BYTES_PER_ELEMENT[precision.kv]
    found: list[Lookback] = []
    for name, num_layers in Counter(mixer for mixer, _ in model.layer_names if mixer != "none").items():
        mixer = model.mixers[name]
        for term in mixer.context_terms():
            num_bytes = term.cached_elements_per_entry * element / min(layout.tp, term.num_shards)
            found.append(
                Lookback(
                    mixer=name,
                    num_layers=num_layers,
                    window=NO_WINDOW if term.window is None else term.window,
                    compression=term.compression,
                    prefill_flops=term.prefill_flops_per_pair / layout.tp,
                    decode_flops=term.decode_flops_per_pair / layout.tp,
                    prefill_bytes=num_bytes,
                    decode_bytes=num_bytes,
                )
            )
        state_bytes = mixer.state_elements() / layout.tp * BYTES_PER_ELEMENT["fp32"]
        if state_bytes:
            flops = mixer.recurrent_flops_per_token() / layout.tp
            chunk_bytes = 2 * state_bytes / _STATE_CHUNK_TOKENS
            found.append(Lookback(name, num_layers, 1, 1, flops, flops, chunk_bytes, 2 * state_bytes))
    return tuple(found)
