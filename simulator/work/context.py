"""Attention over the context: (query, key) pairs and cached entries that a sequence's new tokens
touch. Compiled, for the inner loop.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.jit import jit, jit_inner

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
