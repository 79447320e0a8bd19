"""Who starts first where requests wait in an order of their own."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.plugins import build
from simulator.engine.timeline import serve
from simulator.policies.order import Keys
from tests.cases import cases
from tests.parts import change_plan

SEEDS = st.integers(0, 10_000)


def serve_in_order(tiny, seed, order):
    """One replica with an ample cache, few places, and more requests than it can take at once."""
    rng = np.random.default_rng(seed)
    scheduling = {"kind": "chunked", "max_sequences": int(rng.choice([1, 3, 8]))}
    plan = tiny.plan("dense", seed=1, tp=2, num_layers=2, scheduling=scheduling)
    plan = change_plan(plan, order=build("order", order, "test"))
    trace = tiny.trace(60, 400.0, 200, 20, seed=seed)
    priority = rng.integers(3, size=trace.num_requests)
    trace = replace(trace, attributes={"priority": priority})
    return serve(plan, trace, fill=tiny.tables.fill, ingress_delay_s=0.0).requests_table()


def check_order(found, key_N):
    """Whoever starts has the least key of all that have come and have not started."""
    start_s, arrival_s = found["scheduled_s"].to_numpy(), found["arrival_s"].to_numpy()
    waits_NN = (arrival_s[None] <= start_s[:, None]) & (start_s[None] > start_s[:, None])
    assert (np.where(waits_NN, key_N[None], np.inf) >= key_N[:, None]).all()
    return waits_NN.any()


@cases(40)
@given(seed=SEEDS)
def test_by_priority_nobody_starts_before_a_more_urgent_one_that_waits(tiny, seed):
    found = serve_in_order(tiny, seed, {"kind": "priority"})
    assert check_order(found, found["priority"].to_numpy(float))


@cases(40)
@given(seed=SEEDS, ageing_s=st.floats(0.001, 1.0))
def test_with_ageing_what_a_request_has_waited_counts(tiny, seed, ageing_s):
    found = serve_in_order(tiny, seed, {"kind": "priority", "ageing_s": ageing_s})
    assert check_order(found, (found["arrival_s"] + ageing_s * found["priority"]).to_numpy())


class Own(Frozen):
    """Whatever a user's own file may return."""

    column: str = "deadline_s"
    writes: bool = False
    place: int = -1

    def keys(self, requests):
        keys = requests.attributes[self.column] * 1.0
        if self.writes:
            requests.num_input[0] = 1
        if self.place >= 0:
            keys[self.place] = np.nan
        return Keys(keys, per_second=0.0)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (Own(column="deadlin_s"), "no column 'deadlin_s' .* did you mean 'deadline_s'"),
        (Own(writes=True), "read-only"),
        (Own(place=1), "nan for request 1"),
    ],
)
def test_an_order_of_ones_own_is_told_what_is_wrong(tiny, own, said):
    plan = change_plan(tiny.plan("dense", seed=1, tp=2, num_layers=2), order=own)
    trace = replace(tiny.trace(2, 50.0, 60, 8), attributes={"deadline_s": np.array([2.0, 1.0])})
    lengths = trace.num_input.copy()
    with pytest.raises(UserError, match=said):
        plan.find_keys(trace)
    assert (trace.num_input == lengths).all()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({}, "needs a priority of each request"),
        ({"priority": np.array(["high", "low"], dtype=object)}, "must hold numbers"),
        ({"priority": np.array([0.0, np.nan])}, "1 of 2 requests"),
    ],
)
def test_a_trace_without_priorities_is_refused_with_what_would_do(tiny, attributes, said):
    order = build("order", {"kind": "priority"}, "test")
    plan = change_plan(tiny.plan("dense", seed=1, tp=2, num_layers=2), order=order)
    trace = replace(tiny.trace(2, 50.0, 60, 8), attributes=attributes)
    with pytest.raises(UserError, match=said):
        plan.find_keys(trace)
