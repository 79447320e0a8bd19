"""Wires as fluids, on links small enough to check by hand."""

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.comm import Exchange
from simulator.engine.fabric import FluidWires, fair_rates


def exchange(*busy_s, latency_s=0.0):
    return Exchange(latency_s, np.array(busy_s, dtype=np.float64), np.zeros((0, 0)))


def carried(*starts):
    """When each of ``(start, exchange)`` ends."""
    env = simpy.Environment()
    wires, ends = FluidWires(env), [0.0] * len(starts)

    def one(number, start_s, wanted):
        yield env.timeout(start_s)
        yield wires.carry(wanted)
        ends[number] = env.now

    for number, (start_s, wanted) in enumerate(starts):
        env.process(one(number, start_s, wanted))
    env.run()
    return ends


def test_alone_an_exchange_takes_its_latency_and_its_busiest_link():
    assert carried((1.0, exchange(2.0, 5.0, 0.0, latency_s=0.5))) == pytest.approx([6.5])


def test_nothing_takes_its_latency():
    assert carried((1.0, exchange(latency_s=0.25)), (0.0, exchange(0.0, 0.0, latency_s=3.0))) == pytest.approx([1.25, 3.0])


def test_two_on_one_link_share_it():
    assert carried((0.0, exchange(2.0)), (0.0, exchange(2.0))) == pytest.approx([4.0, 4.0])


def test_the_shorter_leaves_and_the_longer_speeds_up():
    # Each alone would take 2 and 6 s; at equal shares of what they reach alone, both are half as fast until 4 s.
    assert carried((0.0, exchange(2.0)), (0.0, exchange(6.0))) == pytest.approx([4.0, 8.0])


def test_one_that_comes_later_slows_the_first_from_then_on():
    assert carried((0.0, exchange(4.0)), (2.0, exchange(1.0))) == pytest.approx([5.0, 4.0])


def test_on_disjoint_links_nobody_waits():
    assert carried((0.0, exchange(3.0, 0.0)), (0.0, exchange(0.0, 2.0))) == pytest.approx([3.0, 2.0])


flows = st.integers(1, 5).flatmap(
    lambda links: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=links, max_size=links).filter(any), min_size=1, max_size=6
    )
)


@given(flows)
def test_rates_are_max_min_fair(rows):
    busy_FL = np.array(rows)
    rate_F = np.array(fair_rates(list(busy_FL)))
    used_L = rate_F @ busy_FL
    assert (used_L <= 1 + 1e-9).all()
    level_F = rate_F * busy_FL.max(axis=1)
    # Each fluid crosses a full link on which no other has got further: it could rise only at the cost of one that has less.
    for f, busy_L in enumerate(busy_FL):
        full_L = (busy_L > 0) & (used_L > 1 - 1e-9)
        assert any(level_F[busy_FL[:, link] > 0].max() <= level_F[f] + 1e-9 for link in np.flatnonzero(full_L))
