"""What looking back at the context takes, from sums over the sequences of a step. Compiled, for the
engine's inner loop.

All fidelities and the scoreboard evaluate :func:`work_s`; the compute models say its coefficients
(:class:`Rates`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit, jit_inner

NUM_SUMS = 6


class Rates(NamedTuple):
    """Of one kernel on one rank, in one layer. Seconds are those of the whole accelerator."""

    floor_s: float
    pair_s: float = 0.0
    """For a (query, key) pair, all heads."""
    longest_s: float = 0.0
    """For each entry that the longest view has."""
    entry_s: float = 0.0
    """For a cached entry, read once."""
    token_s: float = 0.0
    """For a new token."""
    row_s: float = 0.0
    """For a row: a new token, those included that fill up a sequence's last tile."""
    sequence_s: float = 0.0
    """For a sequence."""
    overlap: float = 1.0
    """Exponent: 1 where the three parts run one after the other, large where the longest hides the
    rest."""
    tile_rows: float = 1.0
    """Rows of a tile."""
    window_block: float = 0.0
    """Entries that a kernel reads beyond a sliding window."""
    split_entries: float = 0.0
    split_s: float = 0.0
    """Once, where the longest view has more entries than ``split_entries``."""


@jit_inner
def split_s(rates: NDArray[np.float64], sums: NDArray[np.float64]) -> float:
    """Seconds to combine the parts of a long view, once a kernel whatever its number of
    sequences.
    """
    seconds: float = rates[11] if sums[5] > rates[10] else 0.0
    return seconds


@jit_inner
def work_s(rates: NDArray[np.float64], sums: NDArray[np.float64]) -> float:
    """Seconds of one kernel beyond its floor.

    Args:
        rates: the fields of :class:`Rates`.
        sums: over the sequences, ``[NUM_SUMS]``: pairs, entries, tokens, rows, sequences; last, the
            longest view (not a sum).
    """
    compute = sums[0] * rates[1] + sums[5] * rates[2]
    stream = sums[1] * rates[3]
    setup = sums[2] * rates[4] + sums[3] * rates[5] + sums[4] * rates[6]
    seconds: float = split_s(rates, sums)
    overlap, most = rates[7], max(compute, stream, setup)
    if overlap == 1.0:
        seconds += compute + stream + setup
    elif most > 0.0:  # divided by the largest, so that no power overflows
        total = (compute / most) ** overlap + (stream / most) ** overlap + (setup / most) ** overlap
        seconds += most * total ** (1.0 / overlap)
    return seconds


@jit
def kernels_s(rates_nk: NDArray[np.float64], sums_nk: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds ``[n]`` of many kernels, floors included."""
    seconds = np.empty(len(rates_nk))
    for i in range(len(rates_nk)):
        seconds[i] = rates_nk[i, 0] + work_s(rates_nk[i], sums_nk[i])
    return seconds
