"""What can be had at which speed: output tokens/s of a GPU, and their price, against output tokens/s of a user."""

from __future__ import annotations

from typing import Any

from simulator.planner.answer import text_of
from simulator.planner.explore import Finding
from simulator.planner.search import Found

_MOST_POINTS = 24
"""Of one model on one kind of machines: as many as a figure can tell apart."""
_SPEEDS = ("tpot_s.p50", "tpot_s.mean", "tpot_s.p90", "tpot_s.p95", "tpot_s.p99")
"""Targets that tell how fast a user's text comes; the first that was asked for."""


def pareto(found: Found) -> list[dict[str, Any]]:
    """Points that no other of the same model on the same machines beats in both, and what was simulated.

    The closed form is of one replica that is kept busy, whatever the targets. What was simulated is of the whole cluster, paid for at
    the traffic's rate.
    """
    points: list[dict[str, Any]] = []
    for screened in found.screened.values():
        front = screened.front
        chosen = sorted({round(place * (len(front) - 1) / (_MOST_POINTS - 1)) for place in range(_MOST_POINTS)}) if front else []
        for place in chosen:
            per_user, per_gpu, design, budget, batch = front[place]
            text = f"{found.space.text(design)}, {batch:.3g} sequences a rank, {budget:,} tokens a step"
            points.append(_point(found, design.model, design.machines, text, per_user, per_gpu, "closed form"))
    return points + [point for finding in found.findings if (point := _simulated(found, finding)) is not None]


def _simulated(found: Found, finding: Finding) -> dict[str, Any] | None:
    """A finding; ``None`` where nothing was found, or no target says how fast a user's text comes."""
    sized, outcome = finding.sized, finding.outcome
    if sized is None or outcome is None:
        return None
    tpot_s = next((outcome.measured[name] for name in _SPEEDS if outcome.measured.get(name)), None)
    if tpot_s is None:
        return None
    design = finding.option.design
    text = f"{text_of(found, finding)}, {finding.option.budget:,} tokens a step"
    return _point(found, design.model, design.machines, text, 1 / tpot_s, outcome.output_tokens_per_s / sized.size, "simulated")


def _point(found: Found, model: int, place: int, text: str, per_user: float, per_gpu: float, kind: str) -> dict[str, Any]:
    spec, machines = found.space.models[model], found.space.machines[place]
    power = found.question.power
    hourly = machines.price_per_gpu_hour + machines.watts_per_gpu / 1000 * power.price_per_kwh
    return {
        "model": spec.name,
        "is_moe": spec.moe is not None,
        "is_pruned": found.space.candidates[model].pruning is not None,
        "cluster": machines.offer.cluster,
        "deployment": text,
        "tokens_per_s_user": per_user,
        "tokens_per_s_gpu": per_gpu,
        "cost_per_million_output_tokens": hourly / 3600 / per_gpu * 1e6,
        "kind": kind,
    }
