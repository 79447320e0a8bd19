"""One training step of a plan in virtual time, from the first forward pass to updated weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, ProcessGenerator

from simulator.base.errors import UserError
from simulator.config.calibration import Calibration
from simulator.config.calibration.collective import CollectiveFit
from simulator.config.calibration.exchange import doublings
from simulator.config.calibration.fit import Fit
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.host import ExchangeTable, HostRates
from simulator.cost.compute.trained import TrainedModel
from simulator.cost.stages import VECTORS
from simulator.deployment.training.memory import count_optimized, count_stage, find_element_bytes
from simulator.deployment.training.plan import TrainingPlan
from simulator.engine.by_ranks import finish_step, run_step
from simulator.engine.fabric import FluidWires
from simulator.policies.pipelining import ChunkPlace, Pass, PassKind, Turn
from simulator.results.training import PARTS
from simulator.step.training import TrainingPrices
from simulator.work.trained import Chunk, ParameterCount

# Passes of a micro-batch on the ranks that share it: every rank is a SimPy process that computes,
# meets the others, and exchanges over shared links, as in a serving step.
#
# Micro-batches are equally large, so each pass through each chunk of layers is simulated once, or
# with some micro-batches that stand for all, and repeated.


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
            self._found[kind, depth] = self._simulate(kind, self._plan.chunks[depth])
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

    def _simulate(self, kind: PassKind, chunk: Chunk) -> PassTimes:
        """Simulate a pass of each of the micro-batches that stand for all, and take the mean."""
        count = self._prices.num_drawn
        found = [self._run(chunk, kind, micro_batch) for micro_batch in range(count)]
        return PassTimes({name: sum(one[name] for one in found) / count for name in found[0]})

    def _run(self, chunk: Chunk, kind: PassKind, micro_batch: int) -> dict[str, float]:
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


class _Arrivals:
    """Data that passes wait for, by the pass that makes them."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._made: defaultdict[tuple[str, int, int], Event] = defaultdict(env.event)

    def find(self, way: str, micro_batch: int, depth: int) -> Event:
        """Find the event at which a micro-batch has come to a chunk ``down``, its gradient ``up``,
        or its chunk has passed ``through``.
        """
        return self._made[way, micro_batch, depth]

    def send(self, way: str, micro_batch: int, depth: int, delay_s: float) -> None:
        """Let data arrive after some seconds."""
        self._env.process(self._arrive(self.find(way, micro_batch, depth), delay_s))

    def _arrive(self, event: Event, delay_s: float) -> ProcessGenerator:
        yield self._env.timeout(delay_s)
        event.succeed()


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
    arrivals, spans = _Arrivals(env), []
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
            yield arrivals.find("down", one.micro_batch, depth)
        if one.kind in ("backward", "input"):
            yield arrivals.find("through", one.micro_batch, depth)
            if depth < len(places) - 1:
                yield arrivals.find("up", one.micro_batch, depth)

    def hand_on(one: Pass, depth: int) -> None:
        if one.kind == "weight":
            return
        if one.kind == "forward":
            arrivals.find("through", one.micro_batch, depth).succeed()
        way, after = ("down", depth + 1) if one.kind == "forward" else ("up", depth - 1)
        if 0 <= after < len(places):
            stages = places[depth].stage, places[after].stage
            arrivals.send(way, one.micro_batch, after, sends_s.get(stages, 0.0))

    stages = [env.process(run_stage(stage)) for stage in range(len(turns))]
    env.run()
    if not all(stage.triggered for stage in stages):
        raise UserError("pipelining: the schedule waits for a pass that never comes")
    return spans


# Seconds behind and around the passes of a step: sums of gradients, updated weights, and the
# optimizer.
#
# Collectives are priced as rings of the calibrated library (reduce-scatter, all-gather), with one
# ring for each GPU that a group has in a node.


_OPTIMIZER_SHARE = 0.8
"""Share of the memory's peak rate at which the optimizer reads and writes its state. Assumed: as
STREAM-like kernels do."""


class StageUpdate(NamedTuple):
    """Seconds of one stage that come once in a step."""

    reduce_s: float
    """Sums of gradients over data-parallel ranks, on wires that carry nothing else."""
    gather_s: float
    """Updated weights to the ranks that do not hold their optimizer state."""
    optimizer_s: float
    """The optimizer, and weights that are converted to 8 bits."""


def price_update(plan: TrainingPlan, stage: int) -> StageUpdate:
    """Price the update of a stage's weights. What ZeRO 2 and 3 do for each micro-batch is priced by
    :func:`price_micro_batches`.
    """
    held, spec = count_stage(plan, stage), plan.spec
    if isinstance(plan.placement.calibration, HostRates):
        return _price_on_host(plan, held, plan.placement.calibration)
    element = BYTES_PER_ELEMENT[spec.optimizer.gradient_dtype]
    sums = _collect_stage(plan, "reduce_scatter", stage, held, element)
    optimizer_s = _price_optimizer(plan, stage, element)
    if spec.zero == 0:
        # An all-reduce: sums are handed out before the optimizer needs them.
        handed_s = _collect_stage(plan, "all_gather", stage, held, element)
        return StageUpdate(sums + handed_s, 0.0, optimizer_s)
    gather_s = (
        0.0
        if spec.zero == 3
        else _collect_stage(plan, "all_gather", stage, held, find_element_bytes(plan))
    )
    return StageUpdate(0.0 if spec.zero >= 2 else sums, gather_s, optimizer_s)


def _price_on_host(plan: TrainingPlan, held: ParameterCount, rates: HostRates) -> StageUpdate:
    """Price the update on a machine's processes by its measured all-reduce and optimizer; copies of
    experts are summed by an exchange of their gradients.
    """
    element = BYTES_PER_ELEMENT[plan.spec.optimizer.gradient_dtype]
    number = np.array(held.dense + held.expert)
    optimizer_s = float(rates.training.optimizer.total(parameters=number))
    reduce_s = 0.0
    if plan.dense_group > 1:
        reduce_s += _time_exchange(rates.collectives.all_reduce, held.dense * element)
    if held.expert and plan.expert_group > 1:
        sent = held.expert * element * (plan.expert_group - 1)
        reduce_s += _time_exchange(rates.collectives.dispatch, sent)
    return StageUpdate(reduce_s, 0.0, optimizer_s)


def _time_exchange(table: ExchangeTable, num_bytes: float) -> float:
    """Seconds of an exchange of so many bytes of each rank."""
    return table.stagger_s + table.latency_s + float(table.seconds_for(np.array(num_bytes)))


class MicroBatchUpdate(NamedTuple):
    """Seconds of a stage that sharing weights or gradients adds to every micro-batch, beneath its
    passes as far as these last.
    """

    gather_s: float
    """Weights that are gathered before each pass (ZeRO 3)."""
    reduce_s: float
    """Gradients that are added up after each backward pass (ZeRO 2 and 3)."""


def price_micro_batches(plan: TrainingPlan, stage: int) -> MicroBatchUpdate:
    """Price what ZeRO 2 and 3 do for each micro-batch: a rank that keeps only its part of the
    gradients must add them up before those of the next micro-batch.
    """
    held, element = count_stage(plan, stage), BYTES_PER_ELEMENT[plan.spec.optimizer.gradient_dtype]
    return MicroBatchUpdate(
        _collect_stage(plan, "all_gather", stage, held, find_element_bytes(plan))
        if plan.spec.zero == 3
        else 0.0,
        _collect_stage(plan, "reduce_scatter", stage, held, element)
        if plan.spec.zero >= 2
        else 0.0,
    )


def _collect_stage(
    plan: TrainingPlan, name: str, stage: int, held: ParameterCount, element_bytes: float
) -> float:
    """Seconds of a collective of all parameters of a stage, dense and routed experts'."""
    layout = plan.placement.layout
    dense_N = _count_members(plan, stage, plan.dense_group, layout.tp)
    expert_N = _count_members(plan, stage, plan.expert_group, layout.num_ranks)
    return _collect(plan, name, held.dense * element_bytes, dense_N) + _collect(
        plan, name, held.expert * element_bytes, expert_N
    )


def _price_optimizer(plan: TrainingPlan, stage: int, gradient_bytes: float) -> float:
    """Seconds to read and write moments and master weights, to read gradients and to write weights;
    and to convert to 8 bits what a rank holds of them, which all micro-batches of a step then use
    (``is_first_microbatch`` of Transformer Engine).
    """
    optimizer = plan.spec.optimizer
    moved = (
        2.0 * (optimizer.state_bytes + optimizer.master_bytes)
        + gradient_bytes
        + find_element_bytes(plan)
    )
    rate = plan.placement.accelerator.memory_bytes_per_s * _OPTIMIZER_SHARE
    compute, converted_s = plan.placement.compute, 0.0
    if isinstance(compute, TrainedModel):
        numbers = sum(count_stage(plan, stage, with_ends=False))
        converted_s = float(compute.convert_s(numbers, plan.spec.dtype))
    return count_optimized(plan, stage) * moved / rate + converted_s


def _count_members(plan: TrainingPlan, stage: int, size: int, apart: int) -> NDArray[np.int64]:
    """Count the members of a group in each node that has some, ``[N]``.

    Args:
        apart: ranks from one member to the next.
    """
    ranks = stage * plan.stage_ranks + apart * np.arange(size)
    return np.unique(ranks // plan.cluster.gpus_per_node, return_counts=True)[1]


def _collect(
    plan: TrainingPlan, name: str, num_bytes: float, members_N: NDArray[np.int64]
) -> float:
    """Seconds of one collective of ``num_bytes`` over a group; all groups of a node go on at once,
    each over its own ports and cards, between nodes as many as where it has the fewest members.
    """
    calibration, cluster = plan.placement.calibration, plan.cluster
    size, nodes = int(members_N.sum()), len(members_N)
    if size == 1 or num_bytes == 0.0 or not isinstance(calibration, Calibration):
        return 0.0
    fit: CollectiveFit = calibration.collective[name]
    inside_s = 0.0
    start_s = 0.0
    if (most := float(members_N.max())) > 1:
        start, carry = fit.parts_s(num_bytes, most, 1.0, cluster.scale_up.bytes_per_s)
        start_s, inside_s = float(start), float(carry)
    if nodes == 1 or cluster.scale_out is None:
        return start_s + inside_s
    start_s += fit.scale_out_latency_s + fit.latency_per_doubling_s * float(doublings(nodes))
    cards = float(members_N.min())
    rate = cards * cluster.scale_out.bytes_per_s * (fit.scale_out_fraction or 1.0)
    between_s = num_bytes * (size - 1) / size / rate
    return float(np.maximum(inside_s, between_s)) + start_s


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
_UNKNOWN = 1.3
"""Factor of a fit that states no band."""


def find_band(plan: TrainingPlan, step: TrainingStep) -> tuple[float, float]:
    """Find the factors of a step's 80 % band: each part may be off as its fit was on measurements,
    independently of the others, backward products by :data:`BACKWARD_RANGE`, and all of it by
    :data:`FRAMEWORK_RANGE`.

    Returns:
        Factors on the step's seconds, low and high.
    """
    if isinstance(plan.placement.calibration, HostRates):
        return 1 / _UNKNOWN, _UNKNOWN
    total = step.step_s
    parts = step.mean_parts
    shares = {name: parts[name] / total for name in _list_fits(plan)}
    wide = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    for name, fit in _list_fits(plan).items():
        for side, factor in zip(wide, fit.band or (1 / _UNKNOWN, _UNKNOWN), strict=True):
            side[0] += (shares[name] * math.log(factor)) ** 2
    # Of the products' time two thirds are backward passes, less where passes are made again.
    products = shares.get("dense", 0.0) + shares.get("experts", 0.0) + shares.get("attention", 0.0)
    ratio = plan.spec.backward_ratio
    forward = 1.0 + (plan.spec.recompute == "full")
    for side, other in zip(wide, BACKWARD_RANGE, strict=True):
        changed = (forward + other) / (forward + ratio)
        side[1] = (products * math.log(changed)) ** 2
    framework = FRAMEWORK_RANGE[plan.placement.experts is not None]
    for side, factor in zip(wide, framework, strict=True):
        side[2] = math.log(factor) ** 2
    low, high = (math.sqrt(sum(side)) for side in wide)
    return math.exp(-low), math.exp(high)


def _list_fits(plan: TrainingPlan) -> dict[str, Fit]:
    """List the fits that price parts of a step."""
    calibration = plan.placement.calibration
    return dict(_yield_fits(plan, calibration)) if isinstance(calibration, Calibration) else {}


def _yield_fits(plan: TrainingPlan, calibration: Calibration) -> Iterator[tuple[str, Fit]]:
    products = calibration.matrices("bf16")
    yield "dense", products
    yield "attention", products
    if plan.placement.experts is not None:
        yield "experts", products
    if plan.spec.parallel.tp > 1:
        yield "collective", calibration.collective["all_reduce"]


_VECTOR_BYTES = 2.0
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
    table = PassTable(plan, prices)
    updates = [price_update(plan, stage) for stage in range(plan.num_stages)]
    begins_s = [
        _expose(plan, update.gather_s, table.find_turn(stage, plan.turns[stage][0]).duration_s)
        for stage, update in enumerate(updates)
    ]
    shared = [price_micro_batches(plan, stage) for stage in range(len(updates))]
    turn_s = partial(_time_turn, plan, table, shared)
    spans = run_pipeline(plan.turns, plan.places, turn_s, _price_sends(plan), begins_s)
    return _finish_step(plan, table, spans, updates, begins_s)


def _count_chunks(plan: TrainingPlan) -> int:
    return len(plan.places) // plan.num_stages


def _time_turn(
    plan: TrainingPlan,
    table: PassTable,
    shared: list[MicroBatchUpdate],
    stage: int,
    turn: Turn,
) -> float:
    """Seconds of a turn, or of the weights and gradients that travel meanwhile, if these take
    longer (one after the other where nothing overlaps).
    """
    chunks = _count_chunks(plan)
    travel_s = sum(
        (shared[stage].gather_s if one.kind != "weight" else 0.0)
        + (shared[stage].reduce_s if one.kind in ("backward", "weight") else 0.0)
        for one in turn
    )
    seconds = table.find_turn(stage, turn).duration_s
    return seconds + _expose(plan, travel_s / chunks, seconds)


def _expose(plan: TrainingPlan, travel_s: float, beneath_s: float) -> float:
    """Seconds of a collective that what it travels beneath does not hide."""
    return max(0.0, travel_s - beneath_s) if plan.spec.overlap_gradients else travel_s


def _price_sends(plan: TrainingPlan) -> dict[tuple[int, int], float]:
    """Price a micro-batch's vectors from one stage to another: each rank sends those of its own
    tokens, which tensor-parallel ranks share out (sequence parallelism).
    """
    # The calibrated transfer is of two vectors a token, as serving engines send them.
    vectors = plan.rank_tokens / plan.placement.layout.tp / VECTORS
    num_bytes = np.array([vectors * VECTORS * plan.model.hidden_size * _VECTOR_BYTES])
    return {stages: float(one.seconds(num_bytes)[0]) for stages, one in plan.sends.items()}


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
    last = [max(own, key=_find_end) for own in spans_S]
    exposed_s = [
        _expose(plan, update.reduce_s, _find_last_s(plan, own))
        for own, update in zip(spans_S, updates, strict=True)
    ]
    met_s = max(_find_end(span) + s for span, s in zip(last, exposed_s, strict=True))
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
    named = list(_name_spans(spans))
    for stage in stages:
        if begins_s[stage]:
            named.append(StepSpan(stage, "gradients", -1, 0.0, begins_s[stage]))
        if exposed_s[stage]:
            end_s = _find_end(last[stage])
            named.append(StepSpan(stage, "gradients", -1, end_s, exposed_s[stage]))
        named.append(StepSpan(stage, "optimizer", -1, met_s, updates[stage].optimizer_s))
    return TrainingStep(step_s, tuple(parts), tuple(named))


def _find_end(span: StageSpan) -> float:
    return span.start_s + span.duration_s


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


def _name_spans(spans: list[StageSpan]) -> Iterator[StepSpan]:
    """Name the turns of all stages; a pair of passes is ``both``."""
    for span in spans:
        name = span.turn[0].kind if len(span.turn) == 1 else "both"
        yield StepSpan(span.stage, name, span.turn[0].micro_batch, span.start_s, span.duration_s)
