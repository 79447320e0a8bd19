"""Links as fluids, on links small enough to check by hand."""

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost.comm import Exchange
from simulator.engine.fabric import FluidWires, MessageWires, drain_links, find_ends
from simulator.policies.messages import Messages
from simulator.policies.topology.switch import Switch


def exchange(*busy_s, latency_s=0.0):
    return Exchange(latency_s, np.array(busy_s, dtype=np.float64), Messages.empty())


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


@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        ([(1.0, exchange(2.0, 5.0, 0.0, latency_s=0.5))], [6.5]),  # its latency and busiest link
        ([(1.0, exchange(latency_s=0.25)), (0.0, exchange(0.0, latency_s=3.0))], [1.25, 3.0]),
        ([(0.0, exchange(2.0)), (0.0, exchange(2.0))], [4.0, 4.0]),  # two on one link share it
        ([(0.0, exchange(2.0)), (0.0, exchange(6.0))], [4.0, 8.0]),  # half as fast until 4 s
        ([(0.0, exchange(4.0)), (2.0, exchange(1.0))], [5.0, 4.0]),  # slower from 2 s on
        ([(0.0, exchange(3.0, 0.0)), (0.0, exchange(0.0, 2.0))], [3.0, 2.0]),  # disjoint links
        # What is left for the second link passes while the first is shared.
        ([(0.0, exchange(2.0, 3.0)), (0.0, exchange(2.0, 0.0))], [4.0, 4.0]),
        ([(0.0, exchange(2.0, 5.0)), (0.0, exchange(2.0, 0.0))], [5.0, 4.0]),
    ],
)
def test_exchanges_share_their_links(starts, ends):
    assert carried(*starts) == pytest.approx(ends)


flows = st.integers(1, 5).flatmap(
    lambda links: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=links, max_size=links).filter(any),
        min_size=1,
        max_size=6,
    )
)


@given(flows)
def test_each_link_is_shared_equally_by_those_who_have_bytes_for_it(rows):
    """Of a link that several need, each gets as much as the others until it needs no more."""
    busy_FL = np.array(rows)
    ends_F = [
        max(np.minimum(busy_L[link], busy_FL[:, link]).sum() for link in np.flatnonzero(busy_L))
        for busy_L in busy_FL
    ]
    assert find_ends(busy_FL) == pytest.approx(ends_F)


@given(flows, st.floats(0.0, 1.0))
def test_what_time_takes_away_is_not_needed_any_more(rows, share):
    """No link idles while there are bytes for it, and nobody ends sooner or later for a look."""
    busy_FL = np.array(rows)
    ends_F, left_FL = find_ends(busy_FL), busy_FL.copy()
    seconds = share * ends_F.max()
    drain_links(left_FL, seconds)
    taken_L = (busy_FL - left_FL).sum(axis=0)
    assert taken_L == pytest.approx(np.minimum(busy_FL.sum(axis=0), seconds))
    assert find_ends(left_FL) == pytest.approx(np.maximum(ends_F - seconds, 0.0), abs=1e-9)


def ends_s(flows, now_s=0.0):
    """When each ends, if all start at once at ``now_s``; fails where the links never come to
    rest.
    """
    env = simpy.Environment(now_s)
    wires = FluidWires(env)
    found = [0.0] * len(flows)

    def carry(number, busy_s):
        yield wires.carry(Exchange(1e-5, busy_s, Messages.empty()))
        found[number] = env.now - now_s

    for number, busy_s in enumerate(flows):
        env.process(carry(number, busy_s))
    for _ in range(10_000):
        if env.peek() == float("inf"):
            return found
        env.step()
    raise AssertionError("the links never come to rest")


@pytest.mark.parametrize("now_s", [0.0, 1e3, 1e5, 3e7])
def test_exchanges_end_however_late_in_a_run(now_s):
    """A year into a run the clock resolves 4 ns only; what is left of an exchange then must not
    keep the links busy forever.
    """
    lengths = [1.2345e-5 * number for number in range(1, 9)]
    found = ends_s([np.array([length]) for length in lengths], now_s)
    assert max(found) == pytest.approx(1e-5 + sum(lengths), abs=100 * np.spacing(now_s), rel=1e-6)


@pytest.mark.parametrize(("num_bytes", "parcels"), [(4e5, 8), (65_536e3, 1000)])
def test_a_message_crosses_its_links_in_parcels(tiny, num_bytes, parcels):
    fabric = Switch().wire(tiny.cluster(8), 2)
    bytes_SR = np.array([[0.0, num_bytes], [0.0, 0.0]])
    env = simpy.Environment()
    sent = Messages.from_matrix(bytes_SR)
    exchange = Exchange(0.0, fabric.sum_by_link(sent) / 1e9, sent)
    env.run(MessageWires(env, fabric).carry(exchange))
    assert exchange.alone_s == pytest.approx(num_bytes / 1e9)
    # The last parcel has one more link to cross.
    assert env.now == pytest.approx((1 + 1 / parcels) * num_bytes / 1e9)
