"""A window on the trace: how many rows it has makes no difference to the last bit, and no request
is put away that anything still names.
"""

import dataclasses
import gc
import weakref
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from simulator.engine import loop_state, result_rows
from simulator.engine.events import (
    ARRIVES,
    COMES_LATER,
    ENDS,
    GOES_ON,
    LEAVES,
    code_of,
    kind_of,
    number_of,
    push_event,
    start_events,
)
from simulator.engine.loop_state import LoopState
from simulator.engine.pool import PoolState
from tests.cases import seeds
from tests.laws.deployments import draw_deployment
from tests.laws.reference_cases import draw_tiers
from tests.laws.test_drafts import draw_drafting
from tests.laws.test_failures import draw_failing
from tests.laws.test_room_for_caches import draw_pools

QUEUES = ("waiting", "ready", "line")


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


def count_names(state):
    """How often each request of the trace is named, by its number, and where."""
    found = Counter()
    for place, pool in enumerate(state.pools):
        first, each, counts = pool.requests.first, pool.ranks.each, pool.ranks.counts
        found.update((place, row + first) for row in loop_state.list_named(pool))
        for name in QUEUES:
            last = each[name]["last"][each[name]["count"] > 0]
            found.update((place, name, row + first) for row in last)
        found.update((place, row + first) for row in counts.coming.last[counts.coming.count > 0])
    first, events = state.first.requests.first, state.events
    for at_s, code in zip(events.at_s, events.code[: events.num_left[0]], strict=False):
        kind, number = kind_of(code), number_of(code)
        if kind in loop_state._OF_REQUESTS:
            found[at_s, kind, number + first] += 1
    found["next to come", int(state.feed.num_come) + first] += 1
    return found


@pytest.mark.parametrize("seed", [3349, 3484])
def test_nor_where_events_name_requests_that_are_lost(tiny, monkeypatch, seed):
    plan, trace = draw_failing(tiny, seed)
    whole = tiny.serve(plan, trace)
    make_small(monkeypatch, 1)
    check_same(whole, tiny.serve(plan, trace))


MOVED = [(LEAVES, 3), (GOES_ON, 2), (ARRIVES, 1), (COMES_LATER, 0)]


def test_lost_requests_stay_while_something_names_them(tiny):
    pool = PoolState(tiny.plan("dense", replicas=2, num_layers=2), tiny.trace(9))
    loop_state.move_window(pool, 0, np.zeros(9))
    requests = pd.DataFrame({"outcome": ["finished"] + ["lost"] * 7 + ["unfinished"]})
    events = start_events(5)
    assert loop_state.count_settled(requests, [pool], events, []) == 8
    assert loop_state.count_settled(requests, [pool], events, [7, 8]) == 7
    pool.ranks.running[1, 0, 0], pool.ranks.each.num_running[1, 0] = 6, 1
    assert loop_state.count_settled(requests, [pool], events, [7]) == 6
    pool.ranks.counts.coming.first[0], pool.ranks.counts.coming.count[0] = 5, 1
    assert loop_state.count_settled(requests, [pool], events, []) == 5
    push_event(events, 1.0, code_of(ENDS, 2))
    assert loop_state.count_settled(requests, [pool], events, []) == 5
    for row, kind in zip((4, 3, 2, 1), (LEAVES, GOES_ON, ARRIVES, COMES_LATER), strict=True):
        push_event(events, 1.0, code_of(kind, row))
        assert loop_state.count_settled(requests, [pool], events, []) == row
    moved = loop_state.move_events(events, 1, 9)
    codes = sorted(moved.code[: moved.num_left[0]].tolist())
    assert codes == [code_of(ENDS, 2), *(code_of(kind, row) for kind, row in MOVED)]
    requests["outcome"] = ["finished"] * 8 + ["unfinished"]
    pool.ranks.each.waiting.first[0, 0], pool.ranks.each.waiting.count[0, 0] = 3, 1
    assert loop_state.count_settled(requests, [pool], start_events(0), []) == 8


@seeds(7700, 8)
def test_whatever_names_a_request_names_it_when_the_window_has_moved(tiny, monkeypatch, seed):
    plan, trace, _ = draw_case(tiny, seed)
    move, moved = LoopState.move_window, []

    def check(state, count):
        before, end = count_names(state), state.first.requests.first + count
        assert all(number >= end for *_, number in before)
        rows = [pool.requests.each[count:].copy() for pool in state.pools]
        move(state, count)
        assert count_names(state) == before
        for pool, own in zip(state.pools, rows, strict=True):
            for name in set(own.dtype.names) - {"following"}:
                assert np.array_equal(pool.requests.each[name][: len(own)], own[name], True)
        moved.append(count)

    make_small(monkeypatch, 4)
    monkeypatch.setattr(LoopState, "move_window", check)
    tiny.serve(plan, trace)
    assert sum(moved) <= trace.num_requests
    assert len(moved) > 1 or trace.num_requests <= (trace.concurrency or 0) + 1


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
