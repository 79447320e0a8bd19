"""Waterfall of a token's time: the run's own seconds by kind of step and phase, divided by cause so
that the pieces add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from simulator.base.columns import Columns, Picked
from simulator.deployment.plan import DeploymentPlan
from simulator.explanation.causes import Floats
from simulator.explanation.limits import find_limits
from simulator.explanation.sample import SampledStep, StepGroup, group_steps, sample_steps
from simulator.explanation.shares import Shares, measure_shares, measure_slower
from simulator.results.explained import LIMITS, PIECES, Queue, Waterfall
from simulator.results.folder import Results
from simulator.results.phases import STEP_PHASES
from simulator.results.token_time import weigh_steps

Spent = dict[str, float]
"""Seconds of a token by phase, in one group of steps."""
_OF_EXPERTS = ("experts", "chance", "skew", "links", "busiest_link")
"""Pieces that a dense model cannot have."""
_ROUNDING = 1e-8
"""Share of a token's time that is left between steps by adding up times in another order."""
_COMPUTED = ("attention", "dense", "experts")
_LIMIT_OF = {
    **dict.fromkeys(("chance", "skew", "unevenness", "jitter"), "balance"),
    **dict.fromkeys(("links", "busiest_link", "collectives"), "network"),
    **dict.fromkeys(("slow_gpus", "slow_wires"), "slower"),
    **dict.fromkeys(("stops", "between"), "outside"),
}
"""Limit of each piece that is not of its own name; ranks' computation has several."""


def make_waterfalls(plan: DeploymentPlan, results: Results) -> tuple[Waterfall, ...]:
    """Divide the time of a deployment's tokens by cause, in each of its pools."""
    requests, steps = results.requests[plan.name], results.steps[plan.name]
    own = results.token_time[results.token_time["deployment"] == plan.name]
    moves = results.moves[results.moves["deployment"] == plan.name]
    waterfalls = []
    for pool in plan.pools:
        is_prefill = pool is plan.prefill
        here = Picked(steps, ((steps["pool"] == "prefill") == is_prefill).to_numpy())
        if not len(here):
            continue
        name = "both" if plan.prefill is None else "prefill" if is_prefill else "decode"
        if is_prefill or own.empty:
            weight, num_tokens = np.ones(len(here)), int(here["prefill_tokens"].sum())
            between_s, token = 0.0, "prompt"
        else:
            weight, num_tokens = weigh_steps(requests, here, moves)
            between_s = _measure_token_s(requests) - float(own["token_s"].sum())
            token = "output"
        first_replica = plan.serving.replicas if is_prefill else 0
        groups = group_steps(pool, here, plan.machines[name], first_replica)
        spent = _spend(here, weight / (num_tokens or 1), groups)
        sampled = {group: sample_steps(pool, here, groups[group], requests) for group in spent}
        waterfalls.append(_make_waterfall(pool, name, token, spent, between_s, sampled))
    return tuple(waterfalls)


def measure_queue(plan: DeploymentPlan, requests: Columns, steps: Columns) -> Queue:
    """Measure how long requests wait for their first step, and for what; the engine's front end,
    which each passes, is no queue.
    """
    in_all_s = float((requests["finish_s"] - requests["arrival_s"]).sum())
    front_s = (plan.prefill or plan).placement.calibration.engine.first_token_s
    waits_s = (requests["scheduled_s"] - requests["arrival_s"]).where(requests["finish_s"].notna())
    waits_s = (waits_s - front_s).clip(lower=0.0)
    queued = Picked(steps, (steps["waiting"] > 0).to_numpy())
    limits = queued["duration_s"].groupby(queued["limited_by"].astype(str)).sum()
    limit = str(limits.idxmax()) if len(limits) else "none"
    return Queue(float(waits_s.sum()) / in_all_s if in_all_s else 0.0, limit)


def _spend(
    steps: Columns, weight: Floats, groups: Mapping[StepGroup, NDArray[np.int64]]
) -> dict[StepGroup, Spent]:
    """Seconds of a token by group and phase.

    Args:
        weight: part of a token that waits for each step.
    """
    phase_s = {phase: steps[f"{phase}_s"].to_numpy() * weight for phase in STEP_PHASES}
    return {
        group: {phase: float(part_s[rows].sum()) for phase, part_s in phase_s.items()}
        for group, rows in groups.items()
    }


def _measure_token_s(requests: Columns) -> float:
    """Seconds from one output token to the next, mean over all but each request's first."""
    counts = (requests["num_output"] > 1) & (requests["outcome"] == "finished")
    later = Picked(requests, counts.to_numpy())
    seconds = float((later["finish_s"] - later["first_token_s"]).sum())
    return seconds / int((later["num_output"] - 1).sum())


def _make_waterfall(
    plan: DeploymentPlan,
    pool: str,
    token: str,
    spent: Mapping[StepGroup, Spent],
    between_s: float,
    sampled: Mapping[StepGroup, list[SampledStep]],
) -> Waterfall:
    pieces = dict.fromkeys(PIECES, 0.0)
    if between_s > _ROUNDING * sum(map(sum, (one.values() for one in spent.values()))):
        pieces["between"] = between_s
    has_experts, hidden_s = plan.placement.experts is not None, 0.0
    layer_L = np.zeros(plan.placement.model.num_moe_layers)
    rank_R = np.zeros(plan.placement.layout.num_ranks)
    computed = dict.fromkeys(LIMITS, 0.0)
    for group, phases in spent.items():
        kind, seconds, steps = group.kind, sum(phases.values()), sampled[group]
        if kind == "cut":
            pieces["stops"] += seconds
            continue
        if group.condition is not None:
            slower = measure_slower(plan, group.condition, steps)
            pieces["slow_gpus"] += seconds * slower.gpus
            pieces["slow_wires"] += seconds * slower.wires
            seconds *= 1 - sum(slower)
        if kind == "prefill" and token == "output":
            pieces["prompts"] += seconds
            continue
        is_mixed = kind == "mixed" and token == "output"
        shares = measure_shares(
            plan.placement,
            steps,
            without_prompts=is_mixed,
            was_slower=group.condition is not None,
        )
        if is_mixed:
            pieces["prompts"] += seconds * (1 - shares.decodes)
            seconds *= shares.decodes
        if is_mixed or group.condition is not None:
            phases = {phase: seconds * share for phase, share in shares.phases.items()}
        found = _divide(phases, shares, plan.placement.layout.pp > 1)
        for name, part_s in found.items():
            pieces[name] += part_s
        uneven_s = found["chance"] + found["skew"]
        layer_L += uneven_s * shares.layer_L
        rank_R += found["experts"] * shares.rank_R
        hidden_s += seconds * shares.hidden
        computing_s = sum(found[name] for name in _COMPUTED)
        for limit, share in find_limits(plan, steps[len(steps) // 2]).items():
            computed[limit] += computing_s * share
    left_out = set(() if has_experts else _OF_EXPERTS)
    left_out |= set() if plan.placement.offload is not None else {"below"}
    token_s = sum(pieces.values())
    return Waterfall(
        pool,
        token,
        token_s,
        {name: part_s for name, part_s in pieces.items() if name not in left_out},
        _rank_limits(pieces, computed, token_s),
        hidden_s,
        layer_L.tolist(),
        (rank_R / (rank_R.mean() or 1.0)).tolist() if has_experts else [],
    )


def _divide(phases: Mapping[str, float], shares: Shares, is_pipeline: bool) -> dict[str, float]:
    """Divide the seconds of a kind of steps by cause."""
    wait_s, exchange_s = phases["wait"], phases["dispatch"] + phases["combine"]
    found = {name: phases[name] for name in _COMPUTED}
    found["below"] = phases["experts"] * shares.below
    found["experts"] -= found["below"]
    found |= {name: wait_s * getattr(shares, name) for name in ("chance", "skew", "jitter")}
    rest_s = max(0.0, wait_s - sum(found[name] for name in ("chance", "skew", "jitter")))
    found["bubble" if is_pipeline else "unevenness"] = rest_s
    found["busiest_link"] = exchange_s * shares.busiest
    latency_s = exchange_s * shares.latency
    found["links"] = max(0.0, exchange_s - found["busiest_link"] - latency_s)
    collective_latency_s = phases["collective"] * shares.collective_latency
    found["collectives"] = phases["collective"] - collective_latency_s
    found["latency"] = latency_s + collective_latency_s
    found["host"] = phases["overhead"]
    return found


def _rank_limits(
    pieces: Mapping[str, float], computed: dict[str, float], token_s: float
) -> dict[str, float]:
    """Shares of a token's time by limit, the largest first, without those that take none."""
    total = dict(computed)
    for name, part_s in pieces.items():
        if name not in _COMPUTED:
            total[_LIMIT_OF.get(name, name)] += part_s
    ordered = sorted(total.items(), key=lambda entry: -entry[1])
    return {limit: part_s / token_s for limit, part_s in ordered if part_s > 0}
