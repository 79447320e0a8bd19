"""What is timed on a shard. Every rank calls the same function at once, so that they share caches,
memory and cores as in a step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
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
            turn = _Turn(matrices, inputs)
            found.append(_seconds(turn.run))
    return found


class _Turn:
    """Uses matrices one after the other, going on where the last timing ended."""

    def __init__(self, matrices: list[Tensor], inputs: dict[int, Tensor]) -> None:
        self.matrices, self.inputs, self.next = matrices, inputs, 0

    def run(self, times: int) -> None:
        for _ in range(times):
            matrix = self.matrices[self.next]
            functional.linear(self.inputs[matrix.shape[1]], matrix)
            self.next = (self.next + 1) % len(self.matrices)


def _seconds(run: Callable[[int], None]) -> float:
    """Seconds of one run, as the median of some timings of several."""
    run(2)
    started_s = time.perf_counter()
    run(2)
    once_s = max((time.perf_counter() - started_s) / 2, 1e-7)
    times = max(2, min(2000, int(_PASS_S / once_s)))
    found = []
    for _ in range(_PASSES):
        started_s = time.perf_counter()
        run(times)
        found.append((time.perf_counter() - started_s) / times)
    return statistics.median(found)


def pruned_ratios(
    shard: Shard, rows: tuple[int, ...], pruning: Pruning, shape: tuple[int, int]
) -> list[float]:
    """Time of a product with a pruned matrix over that with the whole one, for every entry of
    ``rows``.
    """
    with torch.inference_mode():
        matrices = [torch.randn(shape) for _ in range(4)]
        pruned = []
        for matrix in matrices:
            holder = PrunedMatrix(pruning)
            holder.store(matrix, choose_kept(matrix, pruning), matrix)
            pruned.append(holder)
        found = []
        for number in rows:
            x = torch.randn(number, shape[1])
            whole_s = _seconds(
                partial(_each, functional.linear, [(x, matrix) for matrix in matrices])
            )
            found.append(
                _seconds(partial(_each, _apply, [(holder, x) for holder in pruned])) / whole_s
            )
    return found


def _each(function: Callable[..., object], arguments: list[tuple[object, ...]], times: int) -> None:
    for number in range(times):
        function(*arguments[number % len(arguments)])


def _apply(holder: PrunedMatrix, x: Tensor) -> object:
    return holder(x)
