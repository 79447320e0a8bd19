"""One training step of a plan in virtual time, from the first forward pass to updated weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from simulator.cost.stages import VECTORS
from simulator.deployment.training.plan import TrainingPlan
from simulator.engine.training.gradients import (
    MicroBatchUpdate,
    StageUpdate,
    price_micro_batches,
    price_update,
)
from simulator.engine.training.passes import PassTable
from simulator.engine.training.pipeline import StageSpan, run_pipeline
from simulator.policies.pipelining import Turn
from simulator.results.training import PARTS
from simulator.step.training import TrainingPrices

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
    spans = run_pipeline(plan.turns, plan.places, turn_s, _find_send_s(plan), begins_s)
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


def _find_send_s(plan: TrainingPlan) -> float:
    """Seconds of a micro-batch's vectors from one stage to the next: each rank sends those of its
    own tokens, which tensor-parallel ranks share out (sequence parallelism).
    """
    if plan.sends is None:
        return 0.0
    # The calibrated transfer is of two vectors a token, as serving engines send them.
    vectors = plan.rank_tokens / plan.placement.layout.tp / VECTORS
    num_bytes = vectors * VECTORS * plan.model.hidden_size * _VECTOR_BYTES
    return float(plan.sends.seconds(np.array([num_bytes]))[0])


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
