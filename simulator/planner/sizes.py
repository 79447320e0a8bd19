"""The sizes around the recommended one: what fails on the next smaller cluster, and what the next
larger one brings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simulator.planner.explore import Finding, Sized
from simulator.planner.findings import explorer, text_of
from simulator.planner.risk import risk
from simulator.planner.search import Found, best_first
from simulator.workload.requests import longest_tokens

_TRIED = 4
"""Deployments that are simulated on the next larger size, besides the recommended one."""


def around(found: Found, finding: Finding) -> dict[str, Any]:
    """The next smaller and the next larger size of the recommended cluster; each ``None`` where
    there is none within the limits.

    On the larger one the best of several deployments is named: the recommended one and the
    runners-up on the same machines, with as many replicas as the cluster holds. Pools are not sized
    anew for it, so they count only where that is their own size.
    """
    sized, machines = finding.sized, found.space.machines[finding.option.design.machines]
    if sized is None:
        return {}
    place = machines.sizes.index(sized.size)
    smaller: dict[str, Any] | None = None
    larger: dict[str, Any] | None = None
    if place and finding.below is not None:
        below = finding.below
        target = below.tightest
        smaller = {
            "gpus": machines.sizes[place - 1],
            "worst_target": target,
            "worst_ratio": below.worst,
            "measured": below.measured[target],
        }
    if place + 1 < len(machines.sizes):
        size = machines.sizes[place + 1]
        larger = {"gpus": size, "cost_per_hour": size * machines.gpu_hour}
        best = _best_on(found, finding, size)
        if best is not None and best.outcome is not None:
            larger |= {
                "deployment": text_of(found, best),
                "worst_target": best.outcome.tightest,
                "worst_ratio": best.outcome.worst,
            }
    return {"smaller": smaller, "larger": larger}


def _best_on(found: Found, first: Finding, size: int) -> Finding | None:
    """The best deployment on the first one's machines at another size; ``None`` where none that was
    tried meets the targets there.
    """
    machines = found.space.machines[first.option.design.machines]
    here = [
        one
        for one in found.findings
        if one.sized is not None and one.option.design.machines == first.option.design.machines
    ]
    tried: list[Finding] = []
    for one in [first, *(other for other in here if other is not first)][: 1 + _TRIED]:
        ranks = one.option.design.num_ranks
        replicas = (size - found.space.spare_gpus(one.option.design)) // ranks
        if one.sized is None:
            continue
        if one.sized.size == size:
            tried.append(one)
        elif one.option.prefill is None and replicas >= 1:
            there = one.sized._replace(size=size, replicas=replicas)
            trials = explorer(found, one)
            outcome = trials.trial(there)
            missing = risk(trials.plan(Sized(0, 1)), outcome, longest_tokens(trials.traffic.trace))
            cost, used = size * machines.gpu_hour, replicas * ranks
            tried.append(
                replace(
                    one,
                    sized=there,
                    outcome=outcome,
                    cost_per_hour=cost,
                    num_gpus=used,
                    risk=missing,
                )
            )
    met = [one for one in tried if one.outcome is not None and one.outcome.met]
    return min(met, key=best_first, default=None)
