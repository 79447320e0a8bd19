"""What can be had at which speed: output tokens/s of a GPU, and their price, against output
tokens/s of a user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from simulator.deployment.plan import make_plan
from simulator.planner.calibration_error import include_one, read_bands
from simulator.planner.evaluations import text_of
from simulator.planner.explore import Evaluation
from simulator.planner.search import SearchResult
from simulator.planner.space import ReplicaShape
from simulator.planner.speeds import Speed

_MOST_POINTS = 24
"""Of one model on one kind of machines: as many as a figure can tell apart."""
_SPEEDS = ("tpot_s.p50", "tpot_s.mean", "tpot_s.p90", "tpot_s.p95", "tpot_s.p99")
"""Targets that tell how fast a user's text comes; the first that was asked for."""


class _Value(NamedTuple):
    """A figure with its band."""

    value: float
    low: float | None = None
    high: float | None = None

    def keys(self, name: str) -> dict[str, float | None]:
        """Of an answer's row."""
        return {name: self.value} | (
            {}
            if self.low is None and self.high is None
            else {f"{name}_low": self.low, f"{name}_high": self.high}
        )

    def over(self, value: float) -> _Value:
        """``value`` divided by the figure."""
        low, high = (value / end if end else None for end in (self.low, self.high))
        return _Value(value / self.value, 0.0 if high is None and low is not None else high, low)


def pareto(result: SearchResult, bands: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Points that no other of the same model on the same machines beats in both, and what was
    simulated.

    The closed form is of one replica that is kept busy, whatever the targets; of a pool that
    decodes, with the pool for prompts that keeps the targets in fewest GPU-seconds, in whatever
    ratio of their sizes, the handover of caches for nothing: more than whole replicas reach. Its
    band is that of a step's seconds, which moves both figures the same way. What was simulated is
    of the whole cluster, paid for at the traffic's rate.

    Args:
        bands: of the deployments that meet the targets, in the evaluations' order.
    """
    points: list[dict[str, Any]] = []
    for screened in result.screened.values():
        front = _unbeaten([*((speed, None) for speed in screened.front), *screened.pooled])
        edges = {
            is_pooled: _edges(result, front[0][0].shape, is_pooled)
            for is_pooled in {prefill is not None for _, prefill in front}
        }
        chosen = (
            sorted(
                {
                    round(place * (len(front) - 1) / (_MOST_POINTS - 1))
                    for place in range(_MOST_POINTS)
                }
            )
            if front
            else []
        )
        points += [
            _closed(result, speed, prefill, edges[prefill is not None])
            for speed, prefill in (front[n] for n in chosen)
        ]
    met = [evaluation for evaluation in result.evaluations if evaluation.cluster_size is not None]
    for evaluation, band in zip(met, bands or [{}] * len(met), strict=True):
        point = _simulated(result, evaluation, band)
        points += [] if point is None else [point]
    return points


def _unbeaten(
    points: list[tuple[Speed, ReplicaShape | None]],
) -> list[tuple[Speed, ReplicaShape | None]]:
    """Points that no other beats in both, the fastest for a user first."""
    best, found = 0.0, []
    for point in sorted(
        points, key=lambda one: (-one[0].per_user, -one[0].per_gpu, one[1] is not None)
    ):
        if point[0].per_gpu > best:
            best = point[0].per_gpu
            found.append(point)
    return found


def _edges(result: SearchResult, shape: ReplicaShape, is_pooled: bool) -> tuple[float, float]:
    """The band of a step's seconds over the predicted ones."""
    space = result.space
    plan = make_plan(space.spec(shape, None), result.question.seed, "plan", space.folder)
    return include_one(read_bands(plan, is_pooled).token)


def _closed(
    result: SearchResult, speed: Speed, prefill: ReplicaShape | None, edges: tuple[float, float]
) -> dict[str, Any]:
    shape, space = speed.shape, result.space
    text = (
        f"{space.text(shape)}, {speed.sequences:.3g} sequences a "
        f"rank, {speed.budget:,} tokens a step"
    )
    if prefill is not None:
        text = (
            f"{space.text(shape)}, {speed.sequences:.3g} sequences a rank, prompts "
            f"on {space.split(prefill)}"
        )
    per_user, per_gpu = (
        _Value(value, value / edges[1], value / edges[0])
        for value in (speed.per_user, speed.per_gpu)
    )
    return _point(result, shape, text, per_user, per_gpu, "closed form") | {
        "is_pooled": prefill is not None
    }


def _simulated(
    result: SearchResult, evaluation: Evaluation, band: Mapping[str, Any]
) -> dict[str, Any] | None:
    """An evaluation; ``None`` where no target says how fast a user's text comes."""
    cluster_size, outcome = evaluation.cluster_size, evaluation.outcome
    if cluster_size is None or outcome is None:
        return None
    name = next((name for name in _SPEEDS if outcome.measured.get(name)), None)
    if name is None:
        return None
    tpot_s = _Value(outcome.measured[name], band.get(f"{name}_low"), band.get(f"{name}_high"))
    made = "output_tokens_per_s_per_gpu"
    per_gpu = _Value(
        outcome.output_tokens_per_s / cluster_size.size,
        band.get(f"{made}_low"),
        band.get(f"{made}_high"),
    )
    text = f"{text_of(result, evaluation)}, {evaluation.candidate.budget:,} tokens a step"
    point = _point(result, evaluation.candidate.shape, text, tpot_s.over(1.0), per_gpu, "simulated")
    return point | {"is_pooled": evaluation.candidate.prefill is not None}


def _point(
    result: SearchResult,
    shape: ReplicaShape,
    text: str,
    per_user: _Value,
    per_gpu: _Value,
    kind: str,
) -> dict[str, Any]:
    spec, machines = result.space.models[shape.model], result.space.machines[shape.machines]
    return {
        "model": spec.name,
        "is_moe": spec.moe is not None,
        "is_pruned": result.space.variants[shape.model].pruning is not None,
        "cluster": machines.offer.cluster,
        "deployment": text,
        **per_user.keys("tokens_per_s_user"),
        **per_gpu.keys("tokens_per_s_gpu"),
        **per_gpu.over(machines.gpu_hour / 3600 * 1e6).keys("cost_per_million_output_tokens"),
        "kind": kind,
    }
