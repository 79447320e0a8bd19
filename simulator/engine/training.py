"""One training step of a plan in virtual time, from the first forward pass to updated weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simpy
from simpy.events import Event, ProcessGenerator

from simulator.base.errors import UserError
from simulator.config.calibration.fit import Fit
from simulator.config.host import HostRates
from simulator.deployment.training.plan import TrainingPlan
from simulator.engine.by_ranks import StepTimes, finish_step, run_step
from simulator.engine.fabric import FluidWires
from simulator.policies.pipelining import ChunkPlace, Pass, PassKind, Turn
from simulator.results.training import PARTS
from simulator.step.training import StageUpdate, TrainingPrices, price_sends, price_update
from simulator.work.trained import Chunk

# Passes of a micro-batch on the ranks that share it: every rank is a SimPy process that computes,
# meets the others, and exchanges over shared links, as in a serving step.
#
# Micro-batches are equally large, so each pass through each chunk of layers is simulated once, or
# with some micro-batches that stand for all, and repeated.


_TRAVELS = ("dispatch", "combine")
"""Phases that a pass of another micro-batch may hide."""


class PassTable:
    """Times of the passes through every chunk of layers, each simulated when it is first asked
    for.
    """

    def __init__(self, plan: TrainingPlan, prices: TrainingPrices) -> None:
        self._plan = plan
        self._prices = prices
        self._found: dict[tuple[PassKind, int], StepTimes] = {}

    def find_turn(self, stage: int, turn: Turn) -> StepTimes:
        """Find the times of a stage's turn. Of a pair of passes each hides its exchanges with
        experts beneath the other's computation, as far as that lasts.
        """
        depth_of = self._plan.depth_of
        times = [self._find_pass(one.kind, depth_of[ChunkPlace(stage, one.chunk)]) for one in turn]
        if len(times) == 1:
            return times[0]
        first, second = (one.phases for one in times)
        travel_s = [sum(one.phases[phase] for phase in _TRAVELS) for one in times]
        busy_s = [one.duration_s - own_s for one, own_s in zip(times, travel_s, strict=True)]
        exposed_s = max(0.0, travel_s[0] - busy_s[1]) + max(0.0, travel_s[1] - busy_s[0])
        share = exposed_s / sum(travel_s) if sum(travel_s) else 0.0
        factors = {phase: share if phase in _TRAVELS else 1.0 for phase in first}
        return StepTimes({name: of * (first[name] + second[name]) for name, of in factors.items()})

    def _find_pass(self, kind: PassKind, depth: int) -> StepTimes:
        """Find the times of a pass through the chunk at a place in the order of layers: the mean of
        the micro-batches that stand for all.
        """
        if (kind, depth) not in self._found:
            chunk, count = self._plan.chunks[depth], self._prices.num_drawn
            found = [self._simulate(chunk, kind, micro_batch) for micro_batch in range(count)]
            phases = {name: sum(one[name] for one in found) / count for name in found[0]}
            self._found[kind, depth] = StepTimes(phases)
        return self._found[kind, depth]

    def _simulate(self, chunk: Chunk, kind: PassKind, micro_batch: int) -> dict[str, float]:
        env = simpy.Environment()
        operations = self._prices.list_operations(chunk, kind, micro_batch)
        num_ranks = self._plan.placement.layout.num_ranks
        return finish_step(env, run_step(env, FluidWires(env), operations, num_ranks)).phases


# Stages of a pipeline in virtual time: every stage is a SimPy process that takes its turns in the
# order of its schedule, and waits for what the stages beside it send.


TurnSeconds = Callable[[int, Turn], float]
"""Function from a stage and its turn to seconds."""


class StageSpan(NamedTuple):
    """Turn of a stage in time."""

    stage: int
    turn: Turn
    start_s: float
    duration_s: float


def run_pipeline(
    turns: Sequence[Sequence[Turn]],
    places: Sequence[ChunkPlace],
    turn_s: TurnSeconds,
    sends_s: Mapping[tuple[int, int], float],
    begins_s: Sequence[float] | None = None,
) -> list[StageSpan]:
    """Run all turns of a step.

    Args:
        turns: of each stage, in order.
        places: of each chunk, in the order of layers.
        sends_s: seconds from one stage to another.
        begins_s: seconds before the first turn of each stage; by default none.

    Returns:
        Turns of all stages in time, in the order of their ends.

    Raises:
        UserError: if the schedule waits for itself.
    """
    env = simpy.Environment()
    spans: list[StageSpan] = []
    made: defaultdict[tuple[str, int, int], Event] = defaultdict(env.event)
    """Events at which a micro-batch has come ``down`` to a chunk, its gradient ``up``, or at which
    the chunk has passed it ``through``."""
    depth_of = {place: depth for depth, place in enumerate(places)}

    def run_stage(stage: int) -> ProcessGenerator:
        yield env.timeout(0.0 if begins_s is None else begins_s[stage])
        for turn in turns[stage]:
            for one in turn:
                yield from _await(one, depth_of[ChunkPlace(stage, one.chunk)])
            start_s, seconds = env.now, turn_s(stage, turn)
            yield env.timeout(seconds)
            spans.append(StageSpan(stage, turn, start_s, seconds))
            for one in turn:
                hand_on(one, depth_of[ChunkPlace(stage, one.chunk)])

    def _await(one: Pass, depth: int) -> ProcessGenerator:
        if one.kind == "forward" and depth > 0:
            yield made["down", one.micro_batch, depth]
        if one.kind in ("backward", "input"):
            yield made["through", one.micro_batch, depth]
            if depth < len(places) - 1:
                yield made["up", one.micro_batch, depth]

    def hand_on(one: Pass, depth: int) -> None:
        if one.kind == "weight":
            return
        if one.kind == "forward":
            made["through", one.micro_batch, depth].succeed()
        way, after = ("down", depth + 1) if one.kind == "forward" else ("up", depth - 1)
        if 0 <= after < len(places):
            delay_s = sends_s.get((places[depth].stage, places[after].stage), 0.0)
            env.process(arrive(made[way, one.micro_batch, after], delay_s))

    def arrive(event: Event, delay_s: float) -> ProcessGenerator:
        yield env.timeout(delay_s)
        event.succeed()

    stages = [env.process(run_stage(stage)) for stage in range(len(turns))]
    env.run()
    if not all(stage.triggered for stage in stages):
        raise UserError("pipelining: the schedule waits for a pass that never comes")
    return spans


# Bands of a simulated step: how far off it may be by the errors of what prices it.


BACKWARD_RANGE = (1.7, 2.4)
"""Ratios of a backward matrix product's time to the forward one's that are held possible: two
products of the same size, somewhat faster where they need no launch of their own, somewhat slower
where operands are transposed or gradients are added up in fp32. Assumed."""
FRAMEWORK_RANGE = {False: (0.95, 1.30), True: (0.80, 1.60)}
"""Ratios of a step's seconds to those of its kernels and exchanges that are held possible, of dense
models and of mixtures of experts, for which frameworks run more small kernels, let the host wait
for counts of tokens, and exchange by kernels that were not measured. Assumed, so that 80 % of the
published trainings lie inside (``workloads/validation/training.csv``)."""
_UNKNOWN = 1 / 1.3, 1.3
"""Factors of a fit that states no band."""


def find_band(plan: TrainingPlan, step: TrainingStep) -> tuple[float, float]:
    """Find the factors of a step's 80 % band: each part may be off as its fit was on measurements,
    independently of the others, backward products by :data:`BACKWARD_RANGE`, and all of it by
    :data:`FRAMEWORK_RANGE`.

    Returns:
        Factors on the step's seconds, low and high.
    """
    calibration = plan.placement.calibration
    if isinstance(calibration, HostRates):
        return _UNKNOWN
    shares = {name: seconds / step.step_s for name, seconds in step.mean_parts.items()}
    fits: dict[str, Fit] = dict.fromkeys(("dense", "attention"), calibration.matrices("bf16"))
    if plan.placement.experts is not None:
        fits["experts"] = calibration.matrices("bf16")
    if plan.spec.parallel.tp > 1:
        fits["collective"] = calibration.collective["all_reduce"]
    # Of the products' time two thirds are backward passes, less where passes are made again.
    products = shares["dense"] + shares["experts"] + shares["attention"]
    forward = 1.0 + (plan.spec.recompute == "full")
    framework, wide = FRAMEWORK_RANGE[plan.placement.experts is not None], []
    for side in (0, 1):
        factors = [(shares[name], (fit.band or _UNKNOWN)[side]) for name, fit in fits.items()]
        changed = (forward + BACKWARD_RANGE[side]) / (forward + plan.spec.backward_ratio)
        factors += [(products, changed), (1.0, framework[side])]
        wide.append(math.sqrt(sum((share * math.log(one)) ** 2 for share, one in factors)))
    return math.exp(-wide[0]), math.exp(wide[1])


_ROUNDED = 1e-9
"""Share of a step that is rounding of the clock."""


class StepSpan(NamedTuple):
    """Activity of a stage for a while."""

    stage: int
    name: str
    micro_batch: int
    """Micro-batch, -1 where it is none's."""
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class TrainingStep:
    """One step: its seconds, by stage and part, and its timeline."""

    step_s: float
    parts_S: tuple[dict[str, float], ...]
    """Seconds of each stage by part of :data:`simulator.results.training.PARTS`, which add up to
    ``step_s``."""
    spans: tuple[StepSpan, ...]

    @property
    def bubble_share(self) -> float:
        """Share of the step in which a stage waits for others, mean over stages."""
        return float(np.mean([parts["bubble"] for parts in self.parts_S])) / self.step_s

    @property
    def mean_parts(self) -> dict[str, float]:
        """Seconds by part, mean over stages."""
        return {name: float(np.mean([parts[name] for parts in self.parts_S])) for name in PARTS}


def run_training_step(plan: TrainingPlan, prices: TrainingPrices) -> TrainingStep:
    """Run one step of a plan.

    Raises:
        UserError: if the schedule waits for itself.
    """
    table, stages = PassTable(plan, prices), range(plan.num_stages)
    updates = [price_update(plan, stage) for stage in stages]
    begins_s = [
        _expose(plan, update.gather_s, table.find_turn(stage, plan.turns[stage][0]).duration_s)
        for stage, update in enumerate(updates)
    ]

    def time_turn(stage: int, turn: Turn) -> float:
        """Seconds of a turn, or of the weights and gradients that travel meanwhile, if these take
        longer (one after the other where nothing overlaps).
        """
        travel_s = sum(
            (updates[stage].each_gather_s if one.kind != "weight" else 0.0)
            + (updates[stage].each_reduce_s if one.kind in ("backward", "weight") else 0.0)
            for one in turn
        )
        seconds = table.find_turn(stage, turn).duration_s
        chunks = len(plan.places) // plan.num_stages
        return seconds + _expose(plan, travel_s / chunks, seconds)

    spans = run_pipeline(plan.turns, plan.places, time_turn, price_sends(plan), begins_s)
    return _finish_step(plan, table, spans, updates, begins_s)


def _expose(plan: TrainingPlan, travel_s: float, beneath_s: float) -> float:
    """Seconds of a collective that what it travels beneath does not hide."""
    return max(0.0, travel_s - beneath_s) if plan.spec.overlap_gradients else travel_s


def _finish_step(
    plan: TrainingPlan,
    table: PassTable,
    spans: list[StageSpan],
    updates: list[StageUpdate],
    begins_s: list[float],
) -> TrainingStep:
    """Let gradients be added up and weights be updated behind the last pass of every stage. The
    norm of all gradients is needed for any update, so stages meet before it.
    """
    stages = range(plan.num_stages)
    spans_S: list[list[StageSpan]] = [[] for _ in stages]
    for span in spans:
        spans_S[span.stage].append(span)
    end_S = [own[-1].start_s + own[-1].duration_s for own in spans_S]
    exposed_s = [
        _expose(plan, update.reduce_s, _find_last_s(plan, own))
        for own, update in zip(spans_S, updates, strict=True)
    ]
    met_s = max(end_s + s for end_s, s in zip(end_S, exposed_s, strict=True))
    step_s = met_s + max(update.optimizer_s for update in updates)
    parts = []
    for stage in stages:
        own = dict.fromkeys(PARTS, 0.0)
        for span in spans_S[stage]:
            times = table.find_turn(stage, span.turn)
            for phase, seconds in times.phases.items():
                own[phase if phase in own else "wait"] += seconds
            own["gradients"] += span.duration_s - times.duration_s
        own["gradients"] += exposed_s[stage] + begins_s[stage]
        own["optimizer"] = updates[stage].optimizer_s
        bubble_s = step_s - sum(own.values())
        own["bubble"] = bubble_s if bubble_s > _ROUNDED * step_s else 0.0
        parts.append(own)
    named = []
    for stage, turn, start_s, seconds in spans:
        name = turn[0].kind if len(turn) == 1 else "both"
        named.append(StepSpan(stage, name, turn[0].micro_batch, start_s, seconds))
    for stage in stages:
        if begins_s[stage]:
            named.append(StepSpan(stage, "gradients", -1, 0.0, begins_s[stage]))
        if exposed_s[stage]:
            named.append(StepSpan(stage, "gradients", -1, end_S[stage], exposed_s[stage]))
        named.append(StepSpan(stage, "optimizer", -1, met_s, updates[stage].optimizer_s))
    return TrainingStep(step_s, tuple(parts), tuple(named))


def _find_last_s(plan: TrainingPlan, spans: list[StageSpan]) -> float:
    """Seconds of the last micro-batch's backward passes of a stage, beneath which gradients travel
    that are final by then.

    Args:
        spans: turns of the stage.
    """
    number = plan.num_micro_batches - 1
    return sum(
        span.duration_s / len(span.turn)
        for span in spans
        for one in span.turn
        if one.kind in ("backward", "weight") and one.micro_batch == number
    )
