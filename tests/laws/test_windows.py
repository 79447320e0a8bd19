"""A window on the trace: how many rows it has makes no difference to the last bit, and no request
is put away that anything still names.
"""

import dataclasses
import gc
import weakref

import numpy as np
import pandas as pd
import pytest

from simulator.engine import loop_state, result_rows
from tests.cases import seeds
from tests.laws.deployments import draw_deployment
from tests.laws.reference_cases import draw_tiers
from tests.laws.test_drafts import draw_drafting
from tests.laws.test_failures import draw_failing
from tests.laws.test_room_for_caches import draw_pools


def share_prefixes(trace, rng):
    """Requests of which some begin with the same blocks of 16 tokens as others."""
    counts = rng.integers(0, 5, trace.num_requests)
    tops = rng.integers(0, 3, trace.num_requests)
    return dataclasses.replace(
        trace,
        prefix_block_tokens=16,
        prefix_starts=np.concatenate([[0], np.cumsum(counts)]),
        prefix_ids=np.concatenate(
            [np.arange(n) + 5 * top for n, top in zip(counts, tops, strict=True)]
        ).astype(np.int64),
    )


def draw_case(tiny, seed):
    """Any deployment that serves more than a few requests: as it is, with replicas that stop and
    start, with drafts, with prefixes; to its end, or until some time before.
    """
    draw = (draw_deployment, draw_failing, draw_drafting, draw_pools)[seed % 4]
    plan, trace = draw(tiny, seed)
    while trace.num_requests < 30:
        seed += 10_000
        plan, trace = draw(tiny, seed)
    rng = np.random.default_rng([seed, 79])
    if rng.random() < 0.3:
        trace = share_prefixes(trace, rng)
        plan = draw_tiers(plan, trace, rng)
    until_s = float(trace.arrival_s.max() * rng.uniform(0.5, 1.5)) if rng.random() < 0.1 else None
    return plan, trace, until_s


def make_small(monkeypatch, rows):
    """Windows of few new rows; what has ended is put away as soon as that is looked at."""
    monkeypatch.setattr(loop_state, "ROWS", rows)
    monkeypatch.setattr(result_rows, "HELD_ROWS", 0)


def check_same(one, other):
    tables = [
        served.requests_table().assign(outcome=served.requests["outcome"].astype(str))
        for served in (one, other)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    pd.testing.assert_frame_equal(one.moves_table(), other.moves_table())
    for name, pool in one.pools.items():
        steps = [served.steps_of(name) for served in (one, other)]
        pd.testing.assert_frame_equal(*steps, check_exact=True)
        assert np.array_equal(pool.ranks.gap_counts, other.pools[name].ranks.gap_counts)


@seeds(7900, 8, soak=200)
def test_how_many_rows_a_window_has_makes_no_difference(tiny, monkeypatch, seed):
    plan, trace, until_s = draw_case(tiny, seed)
    monkeypatch.setattr(result_rows, "_LOG_ROWS", 16)
    whole = tiny.serve(plan, trace, until=until_s)
    make_small(monkeypatch, int(np.random.default_rng(seed).choice([1, 4, 16, 64])))
    check_same(whole, tiny.serve(plan, trace, until=until_s))


@pytest.mark.parametrize("seed", [3349, 3484])
def test_nor_where_events_name_requests_that_are_lost(tiny, monkeypatch, seed):
    plan, trace = draw_failing(tiny, seed)
    whole = tiny.serve(plan, trace)
    make_small(monkeypatch, 1)
    check_same(whole, tiny.serve(plan, trace))


def own_memory(records):
    """The array that a column keeps alive."""
    return records if records.base is None else records.base


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize("keys", [{}, {"prefill": {"parallel": {"tp": 1}, "replicas": 1}}])
def test_a_run_leaves_nothing_behind_for_the_garbage_collector(tiny, fidelity, keys):
    plan = tiny.plan("moe", attention_dp=2, ep=2, **keys)
    gc.disable()
    try:
        served = tiny.serve(plan, tiny.trace(), fidelity)
        served.requests_table()
        held = [weakref.ref(own_memory(pool.requests.each)) for pool in served.pools.values()]
        del served
        assert not any(one() is not None for one in held)
    finally:
        gc.enable()
