"""Steps that stand for those of a run: of each kind and condition of the replica some, at quantiles
of the time spent in them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.columns import Columns
from simulator.deployment.conditions import Condition, find_condition, list_instants
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.probe import spread_batch
from simulator.policies.failures import Machines
from simulator.results.derived.token_time import kinds_of
from simulator.step.program import Batch

LEVELS = (0.1, 0.5, 0.9)
"""Shares of the time in steps of a kind, shortest first, at which steps are taken: three differ
from nine by less than a hundredth of an output token's time in the shipped scenarios."""


class StepGroup(NamedTuple):
    """Steps that are sampled together."""

    kind: str
    """Kind of step (:data:`simulator.results.derived.token_time.KINDS`)."""
    condition: Condition | None
    """Condition of the replica's GPUs and links; ``None`` where all were as fast as usual."""


class SampledStep(NamedTuple):
    """One step of a run."""

    batch: Batch
    """Batch of the step, of one lane where a pipeline has several in flight: its decodes spread
    evenly over the data-parallel ranks, its prompts on as few as they need, as requests arrive,
    for which the other ranks wait."""
    decodes: Batch | None
    """Decodes of the step alone, where prompts are beside them."""
    wait_s: float
    """Seconds that the mean rank waited in the run's own step."""
    duration_s: float
    """Seconds of the run's own step."""


def group_steps(
    plan: DeploymentPlan, steps: Columns, machines: Machines, first_replica: int
) -> dict[StepGroup, NDArray[np.int64]]:
    """Group the steps of one pool by what they compute and by how fast their replica was then: the
    rows of each group.

    Args:
        machines: GPUs of the pool.
        first_replica: number of the pool's first replica in the steps.
    """
    kinds, degraded = kinds_of(steps), plan.placement.cluster.degraded
    slow_of = np.zeros(len(steps), dtype=np.int64)
    conditions: list[Condition | None] = [None]
    if degraded:
        starts_s = steps["start_s"].to_numpy()
        edges_s = [0.0, *list_instants(degraded)]
        spans = np.searchsorted(edges_s[1:], starts_s, "right")
        replicas = steps["replica"].to_numpy() - first_replica
        pairs, pair_of = np.unique(np.stack([replicas, spans]), axis=1, return_inverse=True)
        for number, (replica, span) in enumerate(pairs.T.tolist()):
            found = find_condition(degraded, machines, replica, edges_s[span])
            if found not in conditions:
                conditions.append(found)
            slow_of[pair_of == number] = conditions.index(found)
    groups = {}
    for kind in np.unique(kinds).tolist():
        for number, condition in enumerate(conditions):
            rows = np.flatnonzero((kinds == kind) & (slow_of == number))
            if len(rows):
                groups[StepGroup(kind, condition)] = rows
    return groups


def sample_steps(
    plan: DeploymentPlan, steps: Columns, rows: NDArray[np.int64], requests: Columns
) -> list[SampledStep]:
    """Sample some rows of the steps of one pool at :data:`LEVELS` of the time spent in them.

    Args:
        requests: served by the run, for the typical context of a sequence.
    """
    context, prompt = find_context(requests), float(requests["num_input"].mean())
    return [
        _read_step(plan, steps, place, context, prompt) for place in _find_quantiles(steps, rows)
    ]


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


def _read_step(
    plan: DeploymentPlan, steps: Columns, place: int, context: int, prompt: float
) -> SampledStep:
    num_steps = int(steps["num_steps"].iloc[place])
    pp, prompts = plan.placement.layout.pp, int(steps["prefill_tokens"].iloc[place])
    decodes = int(steps["decodes"].iloc[place]) // num_steps
    lane_prompts = max(1, prompts // pp) if prompts else 0
    lane_decodes = decodes // pp if prompts else max(1, decodes // pp)
    decoding = spread_batch(plan, 0, lane_decodes, context) if lane_decodes else None
    return SampledStep(
        _gather_prompts(plan, lane_prompts, lane_decodes, context, prompt)
        if prompts or decoding is None
        else decoding,
        decoding if prompts else None,
        float(steps["wait_s"].iloc[place]) / num_steps,
        float(steps["duration_s"].iloc[place]) / num_steps,
    )


def _gather_prompts(
    plan: DeploymentPlan, prompts: int, decodes: int, context: int, prompt: float
) -> Batch:
    """Make a batch with prompts of a usual length, each on a rank of its own as long as there are
    ranks, in no rank more than a step takes.

    Args:
        prompt: tokens of a usual prompt.
    """
    dp, budget = plan.placement.layout.attention_dp, plan.serving.rules.token_budget
    of_decode = 1 + plan.placement.drafts.num_tokens
    room = max(1, budget - -(-decodes // dp) * of_decode)
    num_ranks = min(dp, max(-(-prompts // room), math.ceil(prompts / prompt)))
    return spread_batch(plan, prompts, decodes, context, num_ranks)
