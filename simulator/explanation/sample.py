"""Steps that stand for those of a run: of each kind some, at quantiles of the time spent in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.columns import Columns
from simulator.deployment.conditions import place_at
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.probe import spread_batch
from simulator.policies.failures import Machines
from simulator.results.token_time import kinds_of
from simulator.step.program import Batch

LEVELS = (0.1, 0.5, 0.9)
"""Shares of the time in steps of a kind, shortest first, at which steps are taken: three differ
from nine by less than a hundredth of an output token's time in the shipped scenarios."""


class SampledStep(NamedTuple):
    """One step of a run, with its tokens spread evenly over the data-parallel ranks."""

    batch: Batch
    """Batch of the step; of one lane where a pipeline has several in flight."""
    decodes: Batch | None
    """Decodes of the step alone, where prompts are beside them."""
    wait_s: float
    """Seconds that the mean rank waited in the run's own step."""
    slowed: Placement | None = None
    """Placement with the slower GPUs and wires that the step had; ``None`` where all were as
    usual."""


def sample_steps(
    plan: DeploymentPlan,
    steps: Columns,
    requests: Columns,
    machines: Machines,
    first_replica: int,
) -> dict[str, list[SampledStep]]:
    """Sample the steps of one pool by kind (:data:`simulator.results.token_time.KINDS`).

    Args:
        requests: served by the run, for the typical context of a sequence.
        machines: GPUs of the pool.
        first_replica: number of the pool's first replica in the steps.
    """
    kinds, context = kinds_of(steps), find_context(requests)
    found = {}
    for kind in np.unique(kinds).tolist():
        places = _find_quantiles(steps, np.flatnonzero(kinds == kind))
        found[kind] = [_read_step(plan, steps, place, context) for place in places]
        for number, place in enumerate(places):
            replica = int(steps["replica"].iloc[place]) - first_replica
            start_s = float(steps["start_s"].iloc[place])
            placement = place_at(plan, machines, replica, start_s)
            if placement is not plan.placement:
                found[kind][number] = found[kind][number]._replace(slowed=placement)
    return found


def find_context(requests: Columns) -> int:
    """Find the tokens that a sequence has in the cache halfway through its output, on average."""
    return max(1, int((requests["num_input"] + requests["num_output"] / 2).mean()))


def _find_quantiles(steps: Columns, places: NDArray[np.int64]) -> list[int]:
    """Find rows at :data:`LEVELS` of the time spent in some rows, shorter steps first."""
    duration_s = steps["duration_s"].to_numpy()[places]
    order = np.argsort(duration_s / steps["num_steps"].to_numpy()[places], kind="stable")
    passed_s = np.cumsum(duration_s[order])
    chosen = np.searchsorted(passed_s, np.array(LEVELS) * passed_s[-1])
    return [int(place) for place in places[order[chosen]]]


def _read_step(plan: DeploymentPlan, steps: Columns, place: int, context: int) -> SampledStep:
    num_steps = int(steps["num_steps"].iloc[place])
    pp, prompts = plan.placement.layout.pp, int(steps["prefill_tokens"].iloc[place])
    decodes = int(steps["decodes"].iloc[place]) // num_steps
    lane_prompts = max(1, prompts // pp) if prompts else 0
    lane_decodes = decodes // pp if prompts else max(1, decodes // pp)
    return SampledStep(
        spread_batch(plan, lane_prompts, lane_decodes, context),
        spread_batch(plan, 0, lane_decodes, context) if prompts and lane_decodes else None,
        float(steps["wait_s"].iloc[place]) / num_steps,
    )
