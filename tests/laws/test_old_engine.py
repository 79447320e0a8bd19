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


def draw_comparable(tiny, seed):
    """A deployment that the old engine served alike: it let caches leave whether there was room for
    them or not, so that pools are left out, and had no one order of the events of an instant for
    closed loops of many replicas, which are opened.
    """
    plan, trace = draw_deployment(tiny, seed)
    if plan.prefill is not None:
        plan = dataclasses.replace(plan, prefill=None, transfer=None)
    if plan.serving.replicas > 1:
        trace = dataclasses.replace(trace, concurrency=None)
    return plan, trace


def check_same(tables, plan, trace, fidelity, exact):
    found = serve(plan, trace, fidelity, fill=tables.fill)
    known = serve_reference(plan, trace, fidelity, tables.make)
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
            for replica in range(found.pools[name].plan.serving.replicas)
        ]
    for (name, replica, own), before in zip(logs, known.logs, strict=True):
        if exact:
            before = pd.DataFrame(before, columns=list(LOG_COLUMNS))
            before = before.assign(num_steps=1, decodes=before["decode_tokens"])
            before = join_rows(before, find_ends(found, name, replica))
            before, own = (table[["num_steps", *LOG_COLUMNS]] for table in (before, own))
            np.testing.assert_array_equal(own, before)
        else:
            np.testing.assert_allclose(own[list(LOG_COLUMNS)], before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(times(40)))
def test_steps_of_a_table_are_the_same(tiny, seed):
    check_same(tiny.tables, *draw_comparable(tiny, seed), "step", exact=True)


@pytest.mark.parametrize("seed", range(1000, 1000 + times(8)))
def test_steps_of_simulated_ranks_are_the_same(tiny, seed):
    """But for the last digits of a time: a wait is a difference of two."""
    plan, trace = draw_comparable(tiny, seed)
    few = subset(trace, np.arange(min(12, trace.num_requests)))
    few = dataclasses.replace(few, num_output=np.minimum(few.num_output, 6))
    check_same(tiny.tables, plan, few, "rank", exact=False)
