"""Attention over the context: (query, key) pairs and cached entries that a sequence's new tokens
touch. Compiled, for the inner loop.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal, NamedTuple

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.jit import jit, jit_inner
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.mixers import ContextTerm
from simulator.config.model import ModelSpec
from simulator.work.layout import Layout
from simulator.work.memory import Precision

NO_WINDOW = 1 << 40
"""Stands for an unlimited window in compiled code; small enough that a window times the tokens of
an entry stays an int64."""


@jit_inner
def pairs(context: int, new: int, window: int, compression: int) -> float:
    """Count (query, key) pairs when ``new`` tokens follow ``context`` earlier ones: token ``t``
    (from 1) attends to ``min(t / compression, window)`` entries.

    >>> float(pairs(0, 4, NO_WINDOW, 1))     # causal: 1 + 2 + 3 + 4
    10.0
    >>> float(pairs(10, 1, NO_WINDOW, 1))    # a decode token sees the 10 before it and itself
    11.0
    >>> float(pairs(0, 4, 2, 1))             # 1 + 2 + 2 + 2
    7.0
    """
    if new <= 0:
        return 0.0
    first, last = context + 1, context + new
    full = window * compression  # from this token on, the window is full
    if last <= full:
        return (first + last) * 0.5 * new / compression
    if first > full:
        return float(window) * new
    rising = full - first + 1
    return (first + full) * 0.5 * rising / compression + float(window) * (new - rising)


@jit_inner
def entries(context: int, new: int, window: int, compression: int) -> float:
    """Count cached entries that a step must read (or write) for one sequence: all that its new
    tokens attend to, each once.

    >>> float(entries(10, 1, NO_WINDOW, 1))
    11.0
    >>> float(entries(1000, 1, 128, 1))
    128.0
    """
    seen = (context + new) / compression
    return min(seen, float(window) + (new - 1) / compression)


@jit
def total_pairs(context: Ints, new: Ints, window: int, compression: int) -> float:
    """Sum :func:`pairs` over sequences."""
    total = 0.0
    for i in range(len(new)):
        total += pairs(context[i], new[i], window, compression)
    return total


@jit_inner
def add_sums(
    sums: Floats, context: int, new: int, window: int, compression: int, tile_rows: float
) -> None:
    """Add one sequence to ``[6]`` sums: pairs, entries, new tokens, new tokens rounded up to whole
    tiles, sequences; the last is no sum but the longest attended context, in entries.
    """
    sums[0] += pairs(context, new, window, compression)
    sums[1] += entries(context, new, window, compression)
    sums[2] += new
    sums[3] += math.ceil(new / tile_rows) * tile_rows
    sums[4] += 1.0
    sums[5] = max(sums[5], min((context + new) / compression, float(window)))


@jit_inner
def add_decodes(sums: Floats, count: int, contexts: int, longest: int, tile_rows: float) -> None:
    """Add ``count`` decoding sequences that each get one new token and attend to their whole
    context: :func:`add_sums` without a window, for all of them at once.

    Args:
        contexts: context tokens of all of them together, before the new ones.
        longest: context tokens of the longest one.
        tile_rows: rows that a kernel computes together, a whole number.
    """
    seen = float(contexts + count)
    sums[0] += seen
    sums[1] += seen
    sums[2] += count
    sums[3] += math.ceil(1 / tile_rows) * tile_rows * count
    sums[4] += count
    sums[5] = max(sums[5], float(longest + 1))


def total_sums(context: Ints, new: Ints, window: int, compression: int, tile_rows: float) -> Floats:
    """Sum :func:`add_sums` over sequences of one rank, ``[6]``."""
    one_rank = np.zeros(len(new), dtype=np.int64)
    sums_D6 = sums_by_rank(context, new, one_rank, 1, window, compression, tile_rows)
    sums: Floats = sums_D6[0]
    return sums


@jit
def sums_by_rank(
    context_N: Ints,
    new_N: Ints,
    rank_N: Ints,
    num_ranks: int,
    window: int,
    compression: int,
    tile_rows: float,
) -> Floats:
    """Sum :func:`add_sums` over the sequences of each data-parallel rank, ``[D, 6]``."""
    sums_D6 = np.zeros((num_ranks, 6))
    for i in range(len(new_N)):
        add_sums(sums_D6[rank_N[i]], context_N[i], new_N[i], window, compression, tile_rows)
    return sums_D6


@jit
def uniform_sums(
    batch_size: Ints, context: Ints, new: Ints, window: Ints, compression: Ints, tile_rows: Floats
) -> Floats:
    """Sums of ``n`` batches of equal sequences, ``[n, 6]``, as :func:`add_sums` orders them."""
    sums_nk = np.zeros((len(new), 6))
    for i in range(len(new)):
        add_sums(sums_nk[i], context[i], new[i], window[i], compression[i], tile_rows[i])
        sums_nk[i, :-1] *= batch_size[i]
    return sums_nk


# Kernels that read the attention context on one rank: FLOPs and bytes by which these sums are
# multiplied.


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
