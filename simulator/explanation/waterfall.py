"""Waterfall of a token's time: the run's own seconds by kind of step and phase, divided by cause so
that the pieces add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.base.columns import Columns, Picked
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.explanation.causes import Floats
from simulator.explanation.limits import Faster, find_limits, place_faster
from simulator.explanation.sample import SampledStep, StepGroup, group_steps, sample_steps
from simulator.explanation.shares import Shares, measure_shares, measure_slower
from simulator.results.derived.token_time import weigh_steps
from simulator.results.explained import LIMITS, PIECES, Queue, Waterfall
from simulator.results.folder import Results
from simulator.results.phases import STEP_PHASES

Spent = dict[str, float]
"""Seconds of a token by phase, in one group of steps."""
_OF_EXPERTS = ("experts", "chance", "skew", "links", "busiest_link")
"""Pieces that a dense model cannot have."""
_ROUNDING = 1e-8
"""Share of a token's time that is left between steps by adding up times in another order."""
_COMPUTED = ("attention", "dense", "experts")
_LIMIT_OF = {
    **dict.fromkeys(("slow_gpus", "slow_wires"), "slower"),
    **dict.fromkeys(("stops", "between"), "outside"),
}
"""Limit of each piece that is no part of a step as it usually is."""


def make_waterfalls(plan: DeploymentPlan, results: Results, folder: Path) -> tuple[Waterfall, ...]:
    """Divide the time of a deployment's tokens by cause, in each of its pools.

    Args:
        folder: what paths in the deployment are relative to.
    """
    placed = place_faster(plan, folder)
    requests, steps = results.requests[plan.name], results.steps[plan.name]
    table = results.frame("token_time")
    own = table[table["deployment"] == plan.name]
    moves = results.moves[results.moves["deployment"] == plan.name]
    waterfalls = []
    for number, pool in enumerate(plan.pools):
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
        faster = {resource: pools[number] for resource, pools in placed.items()}
        waterfalls.append(_make_waterfall(pool, name, token, spent, between_s, sampled, faster))
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
    faster: Mapping[str, Faster],
) -> Waterfall:
    pieces = dict.fromkeys(PIECES, 0.0)
    if between_s > _ROUNDING * sum(map(sum, (one.values() for one in spent.values()))):
        pieces["between"] = between_s
    has_experts, hidden_s = plan.placement.experts is not None, 0.0
    layer_L = np.zeros(plan.placement.model.num_moe_layers)
    rank_R = np.zeros(plan.placement.layout.num_ranks)
    prompts, limits = dict(pieces, between=0.0), dict.fromkeys(LIMITS, 0.0)
    doubled = dict.fromkeys(faster, 0.0)
    for group, phases in spent.items():
        kind, seconds, steps = group.kind, sum(phases.values()), sampled[group]
        if kind == "cut" or not seconds:  # or no token waits for it
            pieces["stops"] += seconds
            continue
        was_slower, slower_s = group.condition is not None, {}
        if group.condition is not None:
            slower = measure_slower(plan, group.condition, steps)
            slower_s = {"slow_gpus": seconds * slower.gpus, "slow_wires": seconds * slower.wires}
            seconds *= 1 - sum(slower)
        shares = measure_shares(plan.placement, steps, was_slower=was_slower)
        if was_slower:
            phases = _spread(seconds, shares)
        found = _divide(phases, shares, plan.placement)
        of_prompts = _find_prompts(plan.placement, group, token, steps, found)
        share = sum(of_prompts.values()) / seconds
        of_prompts |= {name: part_s * share for name, part_s in slower_s.items()}
        for parts, total in ((found | slower_s, pieces), (of_prompts, prompts)):
            for name, part_s in parts.items():
                total[name] += part_s
        layer_L += (found["chance"] + found["skew"]) * shares.layer_L
        rank_R += found["experts"] * shares.rank_R
        hidden_s += seconds * shares.hidden
        own = find_limits(plan.placement, faster, steps[len(steps) // 2], phases)
        for limit, share in own.shares.items():
            limits[limit] += seconds * share
        for resource, share in own.doubled.items():
            doubled[resource] += seconds * share
    for name, limit in _LIMIT_OF.items():
        limits[limit] += pieces[name]
    left_out = set(() if has_experts else _OF_EXPERTS)
    left_out |= set() if plan.placement.offload is not None else {"below"}
    token_s = sum(pieces.values())
    ordered = sorted(limits.items(), key=lambda entry: -entry[1])
    return Waterfall(
        pool,
        token,
        token_s,
        {name: part_s for name, part_s in pieces.items() if name not in left_out},
        {name: part_s for name, part_s in prompts.items() if name not in left_out},
        {limit: part_s / token_s for limit, part_s in ordered if part_s > 0},
        {resource: saved_s / token_s for resource, saved_s in doubled.items()},
        hidden_s,
        layer_L.tolist(),
        (rank_R / (rank_R.mean() or 1.0)).tolist() if has_experts else [],
    )


def _spread(seconds: float, shares: Shares) -> Spent:
    """Spread seconds over phases as sampled steps have them."""
    return {phase: seconds * share for phase, share in shares.phases.items()}


def _find_prompts(
    placement: Placement,
    group: StepGroup,
    token: str,
    steps: Sequence[SampledStep],
    found: Mapping[str, float],
) -> dict[str, float]:
    """Find the part of each piece of a kind of steps that is of prompts of other requests."""
    if token != "output" or group.kind == "decode":
        return dict.fromkeys(found, 0.0)
    if group.kind == "prefill":
        return dict(found)
    was_slower = group.condition is not None
    shares = measure_shares(placement, steps, without_prompts=True, was_slower=was_slower)
    alone_s = sum(found.values()) * shares.decodes
    alone = _divide(_spread(alone_s, shares), shares, placement)
    return {name: max(0.0, part_s - alone.get(name, 0.0)) for name, part_s in found.items()}


def _divide(phases: Mapping[str, float], shares: Shares, placement: Placement) -> dict[str, float]:
    """Divide the seconds of a kind of steps by cause."""
    wait_s, exchange_s = phases["wait"], phases["dispatch"] + phases["combine"]
    found = {name: phases[name] for name in _COMPUTED}
    found["below"] = phases["experts"] * shares.below
    found["experts"] -= found["below"]
    found |= {name: wait_s * getattr(shares, name) for name in ("chance", "skew", "jitter")}
    rest_s = max(0.0, wait_s - sum(found[name] for name in ("chance", "skew", "jitter")))
    found["bubble" if placement.layout.pp > 1 else "unevenness"] = rest_s
    found["busiest_link"] = exchange_s * shares.busiest
    latency_s = exchange_s * shares.latency
    found["links"] = max(0.0, exchange_s - found["busiest_link"] - latency_s)
    collective_latency_s = phases["collective"] * shares.collective_latency
    found["collectives"] = phases["collective"] - collective_latency_s
    found["latency"] = latency_s + collective_latency_s
    found["host"] = phases["overhead"]
    return found
