"""Load of the machine, and how long to wait for it."""

from __future__ import annotations

import importlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from simulator.runtime.shard import Shard

if TYPE_CHECKING:
    from simulator.runtime.backend import Backend

_IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Kinds of processor time that are idle, or are counted in another kind already."""


class Use(NamedTuple):
    """Readings of one process's clocks."""

    machine: str
    pid: int
    num_cores: int
    busy_s: float
    """Processor seconds that all processes of the machine have used."""
    own_s: float
    """Processor seconds that this process has used."""
    now_s: float


def read_use(shard: Shard) -> Use:
    """Read the processor time that the shard's process and its machine have used so far."""
    pid, machine = shard.process()
    times = importlib.import_module("psutil").cpu_times()._asdict()
    busy_s = sum(seconds for name, seconds in times.items() if name not in _IDLE)
    cores = os.cpu_count() or 1
    return Use(machine, pid, cores, busy_s, time.process_time(), time.perf_counter())


def others_share(before: Sequence[Use], after: Sequence[Use]) -> float:
    """Share of the cores that other programs took between two readings, on the machine where it was
    largest; NaN without time between them.

    Args:
        before: a reading of every process of ours.
        after: another reading of each; a new process has done all its work since.
    """
    began = {(use.machine, use.pid): use for use in before}
    ended = {(use.machine, use.pid): use for use in after}  # ranks may be threads of one process
    own_s: dict[str, float] = defaultdict(float)
    shares = [math.nan]
    for use in ended.values():
        first = began.get((use.machine, use.pid))
        own_s[use.machine] += use.own_s - (first.own_s if first else 0.0)
    for use in ended.values():
        first = began.get((use.machine, use.pid))
        if first is not None and use.now_s > first.now_s:
            others_s = use.busy_s - first.busy_s - own_s[use.machine]
            shares.append(others_s / (use.num_cores * (use.now_s - first.now_s)))
    return min(max(0.0, max(shares[1:])), 1.0) if shares[1:] else math.nan


class LoadMeter:
    """Meter that reads the clocks of all ranks and of this process, from its creation on."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._before = self._read()

    def others_share(self) -> float:
        """Share of the cores that other programs have taken since the meter was created."""
        return others_share(self._before, self._read())

    def _read(self) -> list[Use]:
        return [*self._backend.apply(read_use), read_use(Shard(0, 1))]


_FIRST = 10
"""Multiple of the requested timeout for the first step of a kind: its kernels are loaded, its
caches filled, and its duration is still unknown."""
_SLOWEST = 5
"""Multiple of the slowest step of a kind so far: on a busy machine healthy steps differ by as
much."""


class Patience:
    """Timeouts learned from the steps of one job; slow deployments get longer ones."""

    def __init__(self, least_s: float) -> None:
        """Start without measurements.

        Args:
            least_s: shortest timeout, seconds.
        """
        self.least_s = least_s
        self._slowest_s: dict[str, float] = {}

    @property
    def first_s(self) -> float:
        """Seconds that ranks may wait for steps that were not measured yet."""
        return _FIRST * self.least_s

    def limit_s(self, kind: str) -> float:
        """Seconds that ranks may wait in a step of a kind."""
        slowest_s = self._slowest_s.get(kind)
        return self.first_s if slowest_s is None else max(self.least_s, _SLOWEST * slowest_s)

    def learn(self, kind: str, took_s: float) -> None:
        """Record the duration of a finished step of a kind."""
        self._slowest_s[kind] = max(took_s, self._slowest_s.get(kind, 0.0))

    def forget(self) -> None:
        """Forget all durations: another job's steps take another time, and so do new ranks."""
        self._slowest_s.clear()
