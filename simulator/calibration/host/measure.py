"""Timings on a shard. Every rank calls the same function at once, so that they share caches,
memory and cores as in a step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch
from torch.nn import functional

from simulator.config.pruning import Pruning
from simulator.runtime.layers.pruned import PrunedMatrix, choose_kept
from simulator.runtime.shard import Shard

_PASSES = 5
"""Times that everything is timed; the median counts, as in a step, where other processes of the
machine take their share."""
_PASS_S = 0.006
"""Shortest that one timing lasts."""


def matrix_seconds(
    shard: Shard, rows: tuple[int, ...], size: int, working_bytes: int
) -> list[float]:
    """Seconds of a product for every entry of ``rows``.

    Matrices of ``size`` weights, wide and tall in turn, are used one after the other,
    ``working_bytes`` in all; the ranks of a machine hold equal shares of them.
    """
    own = max(2, working_bytes // shard.size // (4 * size))
    narrow = 2 ** round(np.log2(size / 2) / 2)
    shapes = [(size // narrow, narrow), (narrow, size // narrow)]
    with torch.inference_mode():
        matrices = [torch.randn(shapes[i % 2]) for i in range(own)]
        found = []
        for number in rows:
            inputs = {width: torch.randn(number, width) for shape in shapes for width in shape}
            calls = [partial(functional.linear, inputs[m.shape[1]], m) for m in matrices]
            found.append(_seconds(calls))
    return found


def pruned_ratios(
    shard: Shard, rows: tuple[int, ...], pruning: Pruning, shape: tuple[int, int]
) -> list[float]:
    """Time of a product with a pruned matrix over that with the whole one, for every entry of
    ``rows``.
    """
    with torch.inference_mode():
        matrices = [torch.randn(shape) for _ in range(4)]
        pruned = [PrunedMatrix(pruning) for _ in matrices]
        for holder, matrix in zip(pruned, matrices, strict=True):
            holder.store(matrix, choose_kept(matrix, pruning), matrix)
        found = []
        for number in rows:
            x = torch.randn(number, shape[1])
            whole_s = _seconds([partial(functional.linear, x, matrix) for matrix in matrices])
            found.append(_seconds([partial(holder, x) for holder in pruned]) / whole_s)
    return found


def _seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Seconds of one call of several that take turns, as the median of some timings of many."""
    turns = cycle(calls)

    def time_calls(times: int) -> float:
        started_s = time.perf_counter()
        for call in islice(turns, times):
            call()
        return (time.perf_counter() - started_s) / times

    time_calls(2)
    times = max(2, min(2000, int(_PASS_S / max(time_calls(2), 1e-7))))
    return statistics.median(time_calls(times) for _ in range(_PASSES))
