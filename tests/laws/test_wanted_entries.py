"""Entries of a table that are filled when a step asks for them: the same as if all had been filled
before, and no more of them than were asked for.
"""

import numpy as np
import pandas as pd
import pytest

from simulator.engine.table import fill_entry, make_table, slow_table, start_table
from simulator.engine.timeline import serve
from simulator.step.mixes import single_mix
from simulator.step.prices import Prices
from tests.cases import seeds
from tests.laws.deployments import draw_deployment


def keep_tables(make):
    """What :func:`serve` asks for, and the tables that it got."""
    kept = {}

    def fill(pool, stream):
        kept[stream] = make(pool.prices, stream)
        return kept[stream]

    return fill, kept


@seeds(8000, 6, soak=250)
def test_entries_that_are_filled_when_asked_for_are_the_same(tiny, seed):
    """Requests and steps to the last bit."""
    plan, trace = draw_deployment(tiny, seed)
    fill, whole = keep_tables(make_table)
    lazily, started = keep_tables(lambda prices, _: start_table(single_mix(prices)))
    full, found = serve(plan, trace, fill=fill), serve(plan, trace, fill=lazily)
    pd.testing.assert_frame_equal(found.requests_table(), full.requests_table(), check_exact=True)
    for name in full.pools:
        np.testing.assert_array_equal(found.steps_of(name), full.steps_of(name))
    for stream, table in whole.items():
        own = started[stream]
        assert table.is_filled.all()
        for column in ("expert_s", "expert_alone_s"):
            np.testing.assert_array_equal(
                getattr(own, column)[own.is_filled], getattr(table, column)[own.is_filled]
            )


def test_a_short_run_fills_few_entries(tiny):
    plan = tiny.plan("moe", attention_dp=4, ep=4)
    lazily, started = keep_tables(lambda prices, _: start_table(single_mix(prices)))
    trace = tiny.trace(3, 50.0, 60, 5)
    serve(plan, trace, fill=lazily)
    (table,) = started.values()
    assert 0 < table.is_filled.sum() < table.is_filled.size / 2
    again = table.is_filled.sum()
    serve(plan, trace, fill=lambda *_: table)
    assert table.is_filled.sum() == again


def test_entries_come_in_any_order(tiny):
    plan = tiny.plan("moe", attention_dp=4, ep=4)
    prices = Prices(plan.placement, 64)
    table, other = make_table(prices), start_table(single_mix(prices))
    places = list(np.ndindex(*table.is_filled.shape))
    for place in np.random.default_rng(4).permutation(len(places)):
        fill_entry(other, single_mix(prices), "steps", *places[place])
    np.testing.assert_array_equal(table.expert_s, other.expert_s)
    np.testing.assert_array_equal(table.expert_alone_s, other.expert_alone_s)


@pytest.mark.parametrize("factor", [0.7, 1.9])
def test_a_slower_table_shares_the_entries_that_are_filled(tiny, factor):
    plan = tiny.plan("moe", attention_dp=4, ep=4)
    table = start_table(single_mix(Prices(plan.placement, 8192)))
    slower = slow_table(table, factor)
    trace = tiny.trace(1, 50.0, 300, 40)
    slow, fast = (serve(plan, trace, fill=lambda *_, own=own: own) for own in (slower, table))
    assert slower.is_filled is table.is_filled
    steps = [served.steps_of("both") for served in (slow, fast)]
    seconds = [column for column in steps[0] if column.endswith("_s") and column != "start_s"]
    np.testing.assert_allclose(steps[0][seconds], factor * steps[1][seconds], rtol=1e-9)
    np.testing.assert_allclose(steps[0]["read_bytes"], steps[1]["read_bytes"])
