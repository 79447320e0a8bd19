"""The Pareto front of an answer: output tokens per second of a GPU, and their price, against output
tokens per second of a user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from simulator.base.formats import batched_tokens
from simulator.planner.calibration_error import include_one, read_bands
from simulator.planner.explore import Evaluation
from simulator.planner.screen import Candidate, Speed
from simulator.planner.search import SearchResult
from simulator.planner.space import ReplicaShape
from simulator.results.answer import DeploymentRow, ParetoPoint

_MOST_POINTS = 24
"""Points of one model on one kind of machines that a figure can tell apart."""
_SPEEDS = ("tpot_s.p50", "tpot_s.mean", "tpot_s.p90", "tpot_s.p95", "tpot_s.p99")
"""Targets that tell how fast a user's text comes; the first that was asked for."""


class _Value(NamedTuple):
    """A figure with its band."""

    value: float
    low: float | None = None
    high: float | None = None

    def name_keys(self, name: str) -> dict[str, float | None]:
        """The fields of a point that hold the figure and its band."""
        return {name: self.value} | (
            {}
            if self.low is None and self.high is None
            else {f"{name}_low": self.low, f"{name}_high": self.high}
        )

    def divide(self, value: float) -> _Value:
        """``value`` divided by the figure."""
        low, high = (value / end if end else None for end in (self.low, self.high))
        return _Value(value / self.value, 0.0 if high is None and low is not None else high, low)


def find_pareto(
    result: SearchResult, rows: Mapping[Candidate, DeploymentRow]
) -> tuple[ParetoPoint, ...]:
    """Points that no other of the same model on the same machines beats in both, and what was
    simulated.

    The analytical front is of one replica that is kept busy, whatever the targets; of a pool that
    decodes, with the pool for prompts that keeps the targets in fewest GPU-seconds, in whatever
    ratio of their sizes, the handover of caches for nothing: more than whole replicas reach. Its
    band is that of a step's seconds, which moves both figures the same way. What was simulated is
    of the whole cluster, paid for at the traffic's rate.

    Args:
        rows: of the deployments that meet the targets.
    """
    points: list[ParetoPoint] = []
    for screened in result.screened.values():
        front = _thin(_drop_beaten([*screened.front, *screened.pooled]))
        if front:
            plan = result.space.plan(front[0].shape)
            alone, pooled = (include_one(read_bands(plan, one).token) for one in (False, True))
        points += [_describe_closed(result, one, pooled if one.prefill else alone) for one in front]
    simulated = (
        _describe_simulated(result, evaluation, rows[evaluation.candidate])
        for evaluation in result.met
    )
    return (*points, *(point for point in simulated if point is not None))


def _thin(front: list[Speed]) -> list[Speed]:
    """Points of a front that a figure can tell apart, evenly from end to end."""
    if not front:
        return []
    places = np.linspace(0, len(front) - 1, _MOST_POINTS)
    return [front[n] for n in sorted({round(place) for place in places.tolist()})]


def _drop_beaten(points: list[Speed]) -> list[Speed]:
    """Points that no other beats in both, the fastest for a user first."""
    best, found = 0.0, []
    for point in sorted(points, key=lambda one: (-one.per_user, -one.per_gpu, bool(one.prefill))):
        if point.per_gpu > best:
            best = point.per_gpu
            found.append(point)
    return found


def _describe_closed(result: SearchResult, speed: Speed, edges: tuple[float, float]) -> ParetoPoint:
    space, where = result.space, batched_tokens(speed.budget)
    if speed.prefill is not None:
        where = f"prompts on {space.split(speed.prefill)}"
    text = f"{space.text(speed.shape)}, {speed.sequences:.3g} sequences a rank, {where}"
    per_user, per_gpu = (
        _Value(value, value / edges[1], value / edges[0])
        for value in (speed.per_user, speed.per_gpu)
    )
    facts = {"deployment": text, "kind": "closed form", "is_pooled": speed.prefill is not None}
    return _make_point(result, speed.shape, per_user, per_gpu, facts)


def _describe_simulated(
    result: SearchResult, evaluation: Evaluation, row: DeploymentRow
) -> ParetoPoint | None:
    """The point of an evaluation; ``None`` where no target says how fast a user's text comes."""
    name = next((name for name in _SPEEDS if row.measured_value(name)), None)
    if name is None:
        return None
    values = _read_value(row, name).divide(1.0), _read_value(row, "output_tokens_per_s_per_gpu")
    text, candidate = f"{row.deployment}, {batched_tokens(row.token_budget)}", evaluation.candidate
    facts = {"deployment": text, "kind": "simulated", "is_pooled": candidate.prefill is not None}
    return _make_point(result, candidate.shape, *values, facts)


def _read_value(row: DeploymentRow, name: str) -> _Value:
    ends = row.__pydantic_extra__
    return _Value(
        row.measured_value(name) or 0.0, ends.get(f"{name}_low"), ends.get(f"{name}_high")
    )


def _make_point(
    result: SearchResult,
    shape: ReplicaShape,
    per_user: _Value,
    per_gpu: _Value,
    facts: Mapping[str, object],
) -> ParetoPoint:
    space, machines = result.space, result.space.machines_at(shape)
    model = space.models[shape.model]
    cost = per_gpu.divide(machines.gpu_hour / 3600 * 1e6)
    return ParetoPoint.model_validate(
        {
            "model": model.name,
            "is_moe": model.moe is not None,
            "is_pruned": space.variants[shape.model].pruning is not None,
            "cluster": machines.offer.cluster,
            **per_user.name_keys("tokens_per_s_user"),
            **per_gpu.name_keys("tokens_per_s_gpu"),
            **cost.name_keys("cost_per_million_output_tokens"),
            **facts,
        }
    )
