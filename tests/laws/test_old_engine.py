"""The engine of before, kept beside the tests, and the one clock: the same, to the last bit."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from simulator.engine.step_log import LOG_COLUMNS
from simulator.engine.timeline import serve
from simulator.planner.traffic import subset
from tests.cases import times
from tests.laws.deployments import draw_deployment, find_ends, join_rows
from tests.reference.cluster import serve_reference


def is_of_one_order(plan, trace):
    """Whether events of one instant had one order before: closed loops of many replicas, or of two
    pools, had not.
    """
    return trace.concurrency is None or (plan.replicas == 1 and plan.prefill is None)


def check_same(plan, trace, fidelity, exact):
    found, known = serve(plan, trace, fidelity), serve_reference(plan, trace, fidelity)
    pd.testing.assert_frame_equal(
        found.requests_table()[list(known.requests)],
        known.requests,
        check_exact=exact,
        rtol=1e-12,
        atol=1e-12,
    )
    gaps = sum(pool.clock.gap_counts.sum(axis=0) for pool in found.pools.values())
    assert gaps.tolist() == known.gaps.tolist()
    logs = []
    for name in found.pools:
        steps = found.steps_of(name)
        logs += [
            (name, replica, steps[steps["replica"] == replica])
            for replica in range(found.pools[name].plan.replicas)
        ]
    for (name, replica, own), before in zip(logs, known.logs, strict=True):
        if exact:
            before = pd.DataFrame(before, columns=list(LOG_COLUMNS))
            before = join_rows(before.assign(num_steps=1), find_ends(found, name, replica))
            before, own = (table[["num_steps", *LOG_COLUMNS]] for table in (before, own))
            np.testing.assert_array_equal(own, before)
        else:
            np.testing.assert_allclose(own[list(LOG_COLUMNS)], before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(times(40)))
def test_steps_of_a_table_are_the_same(tiny, seed):
    plan, trace = draw_deployment(tiny, seed)
    if not is_of_one_order(plan, trace):
        trace = dataclasses.replace(trace, concurrency=None)
    check_same(plan, trace, "step", exact=True)


@pytest.mark.parametrize("seed", range(1000, 1000 + times(8)))
def test_steps_of_simulated_ranks_are_the_same(tiny, seed):
    """But for the last digits of a time: a wait is a difference of two."""
    plan, trace = draw_deployment(tiny, seed)
    if not is_of_one_order(plan, trace):
        trace = dataclasses.replace(trace, concurrency=None)
    few = subset(trace, np.arange(min(12, trace.num_requests)))
    few = dataclasses.replace(few, num_output=np.minimum(few.num_output, 6))
    check_same(plan, few, "rank", exact=False)
