"""Replicas and pools share the links that both use: caches that travel between pools, and what
crosses a leaf switch.
"""

import itertools

import numpy as np
import pytest
import simpy

from simulator.cost.comm import Exchange
from simulator.engine.carried_caches import spread_cache
from simulator.engine.fabric import FluidWires
from simulator.engine.links import LocatedWires, join_fabric
from simulator.engine.timeline import make_record, serve
from simulator.policies.messages import Messages
from simulator.results.sampled_steps import find_errors
from tests.cases import seeds

pytestmark = pytest.mark.shipped_draws


def pools(tiny, network_speed, **keys):
    prefill = {"parallel": {"attention_dp": 2, "ep": 2}, "replicas": 1, **keys}
    split = {"attention_dp": 4, "ep": 4, "replicas": 1, "engine": "sglang"}
    return tiny.plan("moe", **split, network_speed=network_speed, prefill=prefill)


def measure(served):
    """Mean seconds of a transfer, of a decode step and until the first token, and of the run."""
    requests, steps = served.requests_table(), served.steps_of("decode")
    return np.array(
        [
            requests["transfer_s"].mean(),
            steps["duration_s"].sum() / steps["num_steps"].sum(),
            (requests["first_token_s"] - requests["arrival_s"]).mean(),
            requests["finish_s"].max(),
        ]
    )


@pytest.mark.parametrize("network_speed", [1.0, 0.01, 0.003])
def test_messages_and_fluids_agree_on_caches_beside_steps(tiny, network_speed):
    plan = pools(tiny, network_speed)
    trace = tiny.trace(40, 300.0, longest_input=64, longest_output=60)
    rank, message = (measure(serve(plan, trace, one)) for one in ("rank", "message"))
    assert rank == pytest.approx(message, rel=0.05)


@pytest.mark.parametrize("network_speed", [0.01, 0.003, 0.001])
def test_caches_and_steps_slow_each_other_within_what_is_printed(tiny, network_speed):
    """Prices with links of their own are too low where both share them, and by no more than the
    run says.
    """
    trace = tiny.trace(80, 300.0, longest_input=600, longest_output=60)
    plan = pools(tiny, network_speed)
    alone, beside = (serve(plan, trace, one) for one in ("step", "rank"))
    transfer_s, step_s, *_ = measure(beside) / measure(alone)
    record = make_record(alone)
    most = record.wires_shared
    assert 1.0 < transfer_s < 1.0 + most.caches
    # Caches that come later may leave fewer decodes in a step.
    assert 0.997 < step_s < 1.002 + most.decode
    assert "audit.wires" in {one.kind for one in find_errors(record)}
    assert make_record(beside).wires_shared is None


@pytest.mark.parametrize("split", [{"tp": 2}, {"attention_dp": 2, "ep": 2}, {"pp": 2}])
def test_one_cache_alone_takes_what_it_is_priced_at(tiny, split):
    plan = pools(tiny, 0.01, parallel=split)
    trace = tiny.trace(1, longest_input=600, longest_output=24)
    found = [serve(plan, trace, one).requests["transfer_s"][0] for one in ("step", "rank")]
    assert found[0] == pytest.approx(found[1])
    assert found[0] > plan.transfer.send_s(int(trace.num_input[0])) > 0.0


KILLS = [
    {"at_s": 0.05, "gpu": 0},
    {"at_s": 0.08, "gpu": 0, "pool": "prefill"},
    {"at_s": 0.2, "gpu": 2},
    {"at_s": 0.3, "gpu": 1, "pool": "prefill"},
]


@pytest.mark.parametrize("fidelity", ["rank", "message"])
def test_lost_replicas_of_either_pool_lose_no_request_whose_cache_is_under_way(tiny, fidelity):
    kills = [{"kind": "kill", "restart_s": 0.1, **kill} for kill in KILLS]
    plan = tiny.plan(
        "moe",
        attention_dp=2,
        ep=2,
        replicas=2,
        network_speed=0.0005,
        prefill={"parallel": {"tp": 1}, "replicas": 2},
        engine="sglang",
        failures=kills,
        recovery={"kind": "restart", "startup_s": 0.05, "detection_s": 0.01},
    )
    trace = tiny.trace(30, 300.0, longest_input=64, longest_output=8)
    table = serve(plan, trace, fidelity).requests_table()
    assert (table["outcome"] == "finished").all()
    assert table["num_retries"].sum() > 0
    assert (table["first_token_s"] >= table["arrival_s"] + table["transfer_s"]).all()


@seeds(300, 40)
def test_a_cache_leaves_and_arrives_whole(seed):
    rng = np.random.default_rng(seed)
    senders, receivers = (list(range(n)) for n in rng.integers(1, 9, 2))
    num_bytes = float(rng.uniform(1.0, 1e9))
    sent = spread_cache(num_bytes, senders, receivers)
    for side, gpus in enumerate((senders, receivers)):
        for gpu in gpus:
            own = sum(size for pair, size in sent.items() if pair[side] == gpu)
            assert own == pytest.approx(num_bytes / len(gpus))


def on_leaves(tiny, nodes_per_leaf):
    """Two replicas of four nodes of one GPU each, under leaf switches with thin uplinks."""
    plan = tiny.plan("moe", attention_dp=4, ep=4, replicas=2, network_speed=0.01)
    kind = {"kind": "leaf_spine", "nodes_per_leaf": nodes_per_leaf, "oversubscription": 3.0}
    cluster = tiny.cluster(8, 1).model_copy(update={"topology": kind}).with_speed(0.01)
    return tiny.on(plan, cluster)


@seeds(300, 40)
def test_replicas_that_begin_with_a_leaf_share_no_wire_and_take_what_they_are_priced_at(tiny, seed):
    joined = join_fabric(on_leaves(tiny, 2))
    assert sorted(map(len, joined.list_groups())) == [1, 1]
    for located in joined.located.values():
        sent = Messages.from_matrix(np.random.default_rng(seed).uniform(0, 1e6, (4, 4)))
        busy_s = located.own.sum_by_link(sent) / 3e8
        placed = located.place(Exchange(0.0, busy_s, sent))
        assert np.sort(placed.busy_s[placed.busy_s > 0]) == pytest.approx(
            np.sort(busy_s[busy_s > 0])
        )


def test_replicas_under_one_leaf_share_its_uplinks(tiny):
    """The first has three nodes under a leaf and one under the next, with two of the second."""
    plan = on_leaves(tiny, 3)
    joined = join_fabric(plan)
    assert list(map(len, joined.list_groups())) == [2]
    shared = set.intersection(*(set(one.shared_S.tolist()) for one in joined.located.values()))
    assert {joined.fabric.links[link].name for link in shared} == {
        "leaf 1 scale_out out",
        "leaf 1 scale_out in",
    }
    trace = tiny.trace(24, 2000.0, longest_input=32, longest_output=24)
    ends = [serve(plan, trace, one).requests["finish_s"].max() for one in ("rank", "message")]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_exchanges_across_one_uplink_take_as_long_as_both_need_it(tiny):
    """One replica has three messages up and down its leaf, the other four."""
    joined = join_fabric(on_leaves(tiny, 3))
    env = simpy.Environment()
    fluid, needed_s = FluidWires(env), []
    for located in joined.located.values():
        sent = across(located)
        exchange = Exchange(0.0, located.own.sum_by_link(sent) / 5e8, sent)
        needed_s.append(located.place(exchange).busy_s.max())
        LocatedWires(fluid, located).carry(exchange)
    env.run()
    assert needed_s[1] == pytest.approx(needed_s[0] * 4 / 3)
    assert env.now == pytest.approx(sum(needed_s))


def across(located):
    """Messages of equal size by which a replica's ranks use the uplink that it shares."""
    shared, pairs = located.shared_S, itertools.permutations(range(4), 2)
    path = located.fabric.path_SRH
    return Messages.from_pairs(4, {one: 1e6 for one in pairs if np.isin(path[one], shared).any()})
