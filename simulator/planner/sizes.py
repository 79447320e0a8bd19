"""The sizes around the recommended one: what fails on the next smaller cluster, and what the next larger one brings."""

from __future__ import annotations

from typing import Any

from simulator.planner.answer import explorer
from simulator.planner.explore import Finding
from simulator.planner.search import Found


def around(found: Found, finding: Finding) -> dict[str, Any]:
    """The next smaller and the next larger size of the recommended cluster; each ``None`` where there is none within the limits.

    What an aggregated deployment does on the larger one is simulated. Pools are not sized anew for it, so of them only the price is
    told.
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
        if finding.option.prefill is None:
            replicas = (size - found.space.spare_gpus(machines)) // finding.option.design.num_ranks
            if replicas > sized.replicas:
                outcome = explorer(found, finding).trial(sized._replace(size=size, replicas=replicas))
                larger |= {"worst_target": outcome.tightest, "worst_ratio": outcome.worst}
    return {"smaller": smaller, "larger": larger}
