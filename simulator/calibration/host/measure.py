"""Timings on a shard. Every rank calls the same function at once, so that they share caches,
memory and cores as in a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import cycle, islice

import numpy as np
import torch
from scipy.stats import gmean
from torch.nn import functional

from simulator.config.host import HostRates
from simulator.config.sparsity import Pruning
from simulator.runtime.backend import Backend
from simulator.runtime.layers.pruned import PrunedMatrix, choose_kept
from simulator.runtime.shard import Shard

Call = Callable[[], object]
_MATRICES = 4
"""Matrices of a pruned layer that are multiplied one after the other."""
_PASS_S = 0.0015
"""Shortest that one timing lasts."""
_MOST_CALLS = 2000
_REFERENCE_ROWS, _REFERENCE_SHAPE = (1, 16), (256, 256)
"""Products that tell how fast a rank is at this moment: a token's and a small batch's, with two
matrices that lie in a core's own cache and push little out of it."""
_PACES = 12
"""Times that the reference is taken for a pace: one lasts a few milliseconds, in which a shared
machine is a quarter faster or slower than in others."""
_PACE_NOISE = 0.12
"""Standard deviation of the logarithm of 42 paces of a machine (``make bench-twin``, beside other
programs), which its layers' times did not follow: so much of a pace says nothing of the machine."""


@cache
def _list_reference_calls() -> list[list[Callable[[], object]]]:
    matrices = [torch.randn(_REFERENCE_SHAPE) for _ in range(2)]
    inputs = [torch.randn(rows, _REFERENCE_SHAPE[1]) for rows in _REFERENCE_ROWS]
    return [[partial(functional.linear, x, matrix) for matrix in matrices] for x in inputs]


def reference_seconds(shard: Shard) -> float:
    """Seconds of the reference products on a rank at this moment, their geometric mean."""
    with torch.inference_mode():
        return float(gmean([_seconds(calls) for calls in _list_reference_calls()]))


def matrix_times(shard: Shard, rows: tuple[int, ...], size: int, working_bytes: int) -> list[float]:
    """Times of a product for every entry of ``rows``, over those of the reference around it.

    Matrices of ``size`` weights, wide and tall in turn, are used one after the other,
    ``working_bytes`` in all; the ranks of a machine hold equal shares of them.
    """
    own = max(2, working_bytes // shard.size // (4 * size))
    narrow = 2 ** round(np.log2(size / 2) / 2)
    shapes = [(size // narrow, narrow), (narrow, size // narrow)]
    with torch.inference_mode():
        drawn = [torch.randn(shape) for shape in shapes]
        matrices = [drawn[i % 2].clone() for i in range(own)]
        found: list[float] = []
        for number in rows:
            inputs = {width: torch.randn(number, width) for shape in shapes for width in shape}
            calls = [partial(functional.linear, inputs[m.shape[1]], m) for m in matrices]
            before_s, seconds = reference_seconds(shard), _seconds(calls)
            found.append(seconds / math.sqrt(before_s * reference_seconds(shard)))
    return found


def measure_pace(backend: Backend, rates: object) -> float:
    """Seconds that the reference takes on these ranks now over those in a machine's calibration, as
    far as they differ by more than noise; 1 where they do not, and where the calibration is of no
    such machine, or of a version without a reference.
    """
    if not isinstance(rates, HostRates) or rates.tables.reference_s is None:
        return 1.0
    seconds = [backend.apply(reference_seconds) for _ in range(_PACES)]
    pace = math.log(gmean(seconds, axis=None) / rates.tables.reference_s)
    return math.exp(math.copysign(max(0.0, abs(pace) - _PACE_NOISE), pace))


def pruned_ratios(
    shard: Shard, rows: tuple[int, ...], pruning: Pruning, shape: tuple[int, int]
) -> list[float]:
    """Time of a product with a pruned matrix over that with the whole one, for every entry of
    ``rows``.
    """
    with torch.inference_mode():
        products = draw_products(rows, pruning, shape)
        return [_seconds(pruned) / _seconds(whole) for whole, pruned in products]


def draw_products(
    rows: Sequence[int], pruning: Pruning, shape: tuple[int, int]
) -> Iterator[tuple[list[Call], list[Call]]]:
    """Products with whole matrices and with the same ones pruned, for every entry of ``rows``: of
    matrices one after the other, together more than most caches hold.
    """
    matrices = [torch.randn(shape) for _ in range(_MATRICES)]
    holders = [PrunedMatrix(pruning) for _ in matrices]
    for holder, matrix in zip(holders, matrices, strict=True):
        holder.store(matrix, choose_kept(matrix, pruning), matrix)
    for number in rows:
        x = torch.randn(number, shape[1])
        yield (
            [partial(functional.linear, x, matrix) for matrix in matrices],
            [partial(holder, x) for holder in holders],
        )


def _seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Seconds of one call of several that take turns, from a timing of many: by the clock of this
    thread where it works alone, which other programs do not hold up.
    """
    turns = cycle(calls)
    read_s = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def time_calls(times: int) -> float:
        started_s = read_s()
        for call in islice(turns, times):
            call()
        return (read_s() - started_s) / times

    time_calls(2)
    times, found_s = 2, time_calls(2)
    while times * found_s < _PASS_S and times < _MOST_CALLS:
        times = min(_MOST_CALLS, max(2 * times, int(1.2 * _PASS_S / max(found_s, 1e-7))))
        found_s = time_calls(times)
    return found_s
