"""Speeds of the runtime's pruned layers on this machine by sparsity, against whole matrices."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from simulator.base.machine import name_machine
from simulator.base.progress import Progress, show_nothing
from simulator.calibration.host.measure import Call, draw_products
from simulator.config.sparsity import Block, Pruning, TwoFour, Unstructured
from simulator.results.sparsity import MeasuredSpeeds, SpeedCurve
from simulator.runtime.load import others_share, read_use
from simulator.runtime.shard import Shard

SPARSITIES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_KINDS: dict[str, tuple[Pruning, ...]] = {
    "csr": tuple(Unstructured(kind="unstructured", sparsity=share) for share in SPARSITIES),
    "block": tuple(Block(kind="block", sparsity=share) for share in SPARSITIES),
    "two_four": (TwoFour(kind="two_four"),),
}
_PASSES, _TIMED_S = 9, 0.2
"""Least times that each product is timed, and least seconds of all of them."""
NUM_TIMINGS = sum(map(len, _KINDS.values()))


def measure_speeds(
    shape: tuple[int, int], tokens: Sequence[int], tick: Progress = show_nothing
) -> MeasuredSpeeds:
    """Time products with pruned matrices and with whole ones in turn, in fp32 and in one thread.

    Args:
        shape: rows and columns of the matrix, multiples of 16.
        tokens: tokens of the products.
    """
    made = f"{datetime.date.today().isoformat()}, torch {torch.__version__}"
    done, curves, before = 0, [], [read_use(Shard(0, 1))]
    for kernels, prunings in _KINDS.items():
        speed_ups = []
        for pruning in prunings:
            tick("pruned products", done, NUM_TIMINGS)
            with _use_one_thread():
                speed_ups.append(_time_speed_ups(pruning, shape, tokens))
            done += 1
        at = tuple(one.sparsity for one in prunings)
        for number, found in zip(tokens, np.array(speed_ups).T, strict=True):
            curves.append(
                SpeedCurve(
                    machine=name_machine(),
                    device="cpu",
                    kernels=kernels,
                    dtype="fp32",
                    tokens=number,
                    kind="measured",
                    source=f"moesim sparsity --real, {made}",
                    sparsities=at,
                    speed_ups=tuple(found.tolist()),
                    break_even=interpolate_break_even(at, found),
                    sparsity_range=(at[0], at[-1]),
                    rows_range=(float(number), float(number)),
                )
            )
    tick("pruned products", done, NUM_TIMINGS)
    others = others_share(before, [read_use(Shard(0, 1))])
    return MeasuredSpeeds(name_machine(), made, *shape, others, tuple(curves))


@contextmanager
def _use_one_thread() -> Iterator[None]:
    """Compute in one thread, as ranks with a core each do: threads of small products wait for each
    other where other programs run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _time_speed_ups(pruning: Pruning, shape: tuple[int, int], tokens: Sequence[int]) -> list[float]:
    """Time with whole matrices over time with pruned ones, for each number of tokens."""
    with torch.inference_mode():
        return [_compare_times(*products) for products in draw_products(tokens, pruning, shape)]


def _compare_times(first: Sequence[Call], second: Sequence[Call]) -> float:
    """Time of the first calls over that of the second ones. Both take turns, and the shortest times
    count: what other programs take of the machine only adds to some of them.
    """
    shortest, passes, begun_s = [math.inf, math.inf], 0, time.perf_counter()
    while passes < _PASSES or time.perf_counter() - begun_s < _TIMED_S:
        passes += 1
        for place, calls in enumerate((first, second)):
            started_s = time.perf_counter()
            for call in calls:
                call()
            shortest[place] = min(shortest[place], time.perf_counter() - started_s)
    return shortest[0] / shortest[1]


def interpolate_break_even(sparsities: Sequence[float], speed_ups: Sequence[float]) -> float | None:
    """Find the sparsity from which all measured products are at least as fast as the whole one,
    between two of them in the logarithm of the speed; ``None`` where the last one is slower, or
    there is one alone.

    >>> round(interpolate_break_even((0.4, 0.8), (0.5, 2.0)), 9)
    0.6
    """
    log_S = np.log(np.asarray(speed_ups, dtype=np.float64))
    if len(log_S) < 2 or log_S[-1] < 0:
        return None
    slower = np.flatnonzero(log_S < 0)
    if not len(slower):
        return float(sparsities[0])
    last = int(slower[-1])
    share = -log_S[last] / (log_S[last + 1] - log_S[last])
    return float(sparsities[last] + share * (sparsities[last + 1] - sparsities[last]))
