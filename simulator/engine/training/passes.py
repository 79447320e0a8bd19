"""Passes of a micro-batch on the ranks that share it: every rank is a SimPy process that computes,
meets the others, and exchanges over shared links, as in a serving step.

Micro-batches are equally large, so each pass through each chunk of layers is simulated once, or
with some micro-batches that stand for all, and repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import simpy

from simulator.deployment.training.plan import TrainingPlan
from simulator.engine.fabric import FluidWires
from simulator.engine.rank import finish_step, run_step
from simulator.policies.pipelining import ChunkPlace, PassKind, Turn
from simulator.step.training import TrainingPrices

_TRAVELS = ("dispatch", "combine")
"""Phases that a pass of another micro-batch may hide."""


@dataclass(frozen=True)
class PassTimes:
    """Times of one pass: seconds by phase, mean over ranks, which add up to its duration."""

    phases: dict[str, float]

    @property
    def duration_s(self) -> float:
        """Seconds of the pass."""
        return sum(self.phases.values())

    @property
    def travel_s(self) -> float:
        """Seconds of exchanges with experts."""
        return sum(self.phases[phase] for phase in _TRAVELS)

    @property
    def busy_s(self) -> float:
        """Seconds of everything else."""
        return self.duration_s - self.travel_s


class PassTable:
    """Times of the passes through every chunk of layers, each simulated when it is first asked
    for.
    """

    def __init__(self, plan: TrainingPlan, prices: TrainingPrices) -> None:
        self._plan = plan
        self._prices = prices
        self._found: dict[tuple[PassKind, int], PassTimes] = {}

    def find_pass(self, kind: PassKind, depth: int) -> PassTimes:
        """Find the times of a pass through the chunk at a place in the order of layers."""
        if (kind, depth) not in self._found:
            self._found[kind, depth] = self._simulate(kind, self._plan.layers[depth])
        return self._found[kind, depth]

    def find_turn(self, stage: int, turn: Turn) -> PassTimes:
        """Find the times of a stage's turn. Of a pair of passes each hides its exchanges with
        experts beneath the other's computation, as far as that lasts.
        """
        depth_of = self._plan.depth_of
        times = [self.find_pass(one.kind, depth_of[ChunkPlace(stage, one.chunk)]) for one in turn]
        if len(times) == 1:
            return times[0]
        first, second = times
        phases = {name: first.phases[name] + second.phases[name] for name in first.phases}
        exposed_s = sum(
            max(0.0, one.travel_s - other.busy_s)
            for one, other in ((first, second), (second, first))
        )
        travel_s = first.travel_s + second.travel_s
        share = exposed_s / travel_s if travel_s else 0.0
        return PassTimes({name: share * s if name in _TRAVELS else s for name, s in phases.items()})

    def _simulate(self, kind: PassKind, layers: range) -> PassTimes:
        """Simulate a pass of each of the micro-batches that stand for all, and take the mean."""
        count = self._prices.num_drawn
        found = [self._run(layers, kind, micro_batch) for micro_batch in range(count)]
        return PassTimes({name: sum(one[name] for one in found) / count for name in found[0]})

    def _run(self, layers: range, kind: PassKind, micro_batch: int) -> dict[str, float]:
        env = simpy.Environment()
        operations = self._prices.list_operations(layers, kind, micro_batch)
        num_ranks = self._plan.placement.layout.num_ranks
        return finish_step(env, run_step(env, FluidWires(env), operations, num_ranks)).phases
