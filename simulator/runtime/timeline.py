"""Timeline of each rank's operations: the same in the same order on every rank, as in the
simulator's programs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.results.phases import STEP_PHASES


class Moment(NamedTuple):
    """One operation on one rank."""

    phase: str
    layer: int
    is_together: bool
    """Whether the ranks of a group meet in it, so that the first to arrive waits for the last."""
    start_s: float
    end_s: float
    cpu_s: float
    """Seconds that its thread computed: what other programs take of the cores is not in them."""


class Timeline:
    """Recorder of a rank's operations. Each begins where the last one ended, so that no time of a
    step is left out.
    """

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self._last_s, self._last_cpu_s = time.perf_counter(), time.thread_time()

    @contextmanager
    def busy(self, phase: str, layer: int) -> Iterator[None]:
        """Record computation of the rank on its own."""
        yield
        self._end(phase, layer, is_together=False)

    @contextmanager
    def meet(self, phase: str, layer: int) -> Iterator[None]:
        """Record an exchange of the rank with the others of its group."""
        yield
        self._end(phase, layer, is_together=True)

    def _end(self, phase: str, layer: int, *, is_together: bool) -> None:
        start_s, self._last_s = self._last_s, time.perf_counter()
        start_cpu_s, self._last_cpu_s = self._last_cpu_s, time.thread_time()
        cpu_s = self._last_cpu_s - start_cpu_s
        self.moments.append(Moment(phase, layer, is_together, start_s, self._last_s, cpu_s))


@dataclass(frozen=True)
class Measured:
    """Measured times of a step."""

    duration_s: float
    """Seconds from the first rank's start to the last one's end."""
    phases: dict[str, float]
    """Seconds by phase, mean over ranks, which add up to the step's duration."""
    spans: list[tuple[int, str, int, float, float]]
    """Rank, phase, layer, start and duration of each operation, seconds from the step's start."""


def combine(moments_R: list[list[Moment]]) -> Measured:
    """Combine the ranks' operations and separate the waits in them: an exchange, in which all ranks
    meet, begins when the last of them has arrived.

    Args:
        moments_R: operations of each rank, on one clock.
    """
    num_ranks = len(moments_R)
    start_s = min(moments[0].start_s for moments in moments_R)
    end_s = max(moments[-1].end_s for moments in moments_R)
    begun_s = np.array([[moment.start_s for moment in moments] for moments in moments_R])
    phases = dict.fromkeys(STEP_PHASES, 0.0)
    spans: list[tuple[int, str, int, float, float]] = []

    def account(rank: int, phase: str, layer: int, since_s: float, until_s: float) -> None:
        if until_s > since_s:
            phases[phase] = phases.get(phase, 0.0) + (until_s - since_s) / num_ranks
            spans.append((rank, phase, layer, since_s - start_s, until_s - since_s))

    for rank, moments in enumerate(moments_R):
        last_s = start_s
        for number, moment in enumerate(moments):
            account(rank, "overhead", moment.layer, last_s, moment.start_s)
            met_s = moment.start_s
            if moment.is_together:
                met_s = min(float(begun_s[:, number].max()), moment.end_s)
                account(rank, "wait", moment.layer, moment.start_s, met_s)
            account(rank, moment.phase, moment.layer, met_s, moment.end_s)
            last_s = moment.end_s
        account(rank, "wait", -1, last_s, end_s)
    return Measured(end_s - start_s, phases, spans)


def layer_seconds(moments_R: list[list[Moment]], layer: int, phases: tuple[str, ...]) -> float:
    """Seconds of some phases of one layer: from the first rank's start to the last one's end."""
    own = [
        moment
        for moments in moments_R
        for moment in moments
        if moment.layer == layer and moment.phase in phases
    ]
    return max(moment.end_s for moment in own) - min(moment.start_s for moment in own)
