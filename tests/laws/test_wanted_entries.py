"""Entries of a table that are filled when a step asks for them: the same as if all had been filled
before, and no more of them than were asked for.
"""

import numpy as np
import pytest

from simulator.engine.table import slow_table, start_table
from simulator.engine.timeline import serve
from simulator.step.mixes import single_mix
from simulator.step.prices import Prices


def keep_tables(make):
    """What :func:`serve` asks for, and the tables that it got."""
    kept = {}

    def fill(pool, stream):
        kept[stream] = make(pool.prices, stream)
        return kept[stream]

    return fill, kept


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
