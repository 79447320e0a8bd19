"""What every topology, dispatch, scheduling and balancing policy promises. Discovered, never
listed.
"""

import dataclasses
from collections import defaultdict
from itertools import islice
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.base.plugins import available, build
from simulator.config.cluster import load_cluster
from simulator.policies.balancing import Asked, Rule, Snapshot
from simulator.policies.caching import ExpertUses
from simulator.policies.contracts import (
    choose_replica,
    decide_placement,
    find_interruption,
    find_keys,
    find_overflow_fault,
    find_tier,
    make_drafts,
    predict_experts,
    prepare_balancer,
    prepare_predictor,
    rank_waiting,
    rate_experts,
    shrink_experts,
)
from simulator.policies.failures import Machines
from simulator.policies.messages import Messages
from simulator.policies.order import Queued, RankedOrder, Waiting
from simulator.policies.overflow import RoutedTokens, may_drop
from simulator.policies.rebalancing import ExpertLoad
from simulator.policies.recovery import Loss, Requests
from simulator.policies.scaling import PoolLoad
from tests.cases import cases


@pytest.mark.parametrize(("num_gpus", "gpus_per_node"), [(1, 8), (8, 8), (16, 4), (12, 4)])
@pytest.mark.parametrize("topology", available("topology"))
def test_topologies_join_every_pair_and_conserve_bytes(tiny, topology, num_gpus, gpus_per_node):
    cluster = tiny.cluster(max(num_gpus, gpus_per_node), gpus_per_node)
    fabric = build("topology", {"kind": topology}, "test").wire(cluster, num_gpus)
    has_path = (fabric.path_SRH >= 0).any(axis=2)
    assert np.array_equal(has_path, ~np.eye(num_gpus, dtype=bool))
    assert fabric.path_SRH.max() < len(fabric.links)
    hops_SR = (fabric.path_SRH >= 0).sum(axis=2)
    assert all(link.bytes_per_s > 0 and link.latency_s >= 0 for link in fabric.links)
    assert fabric.node_R.tolist() == [rank // gpus_per_node for rank in range(num_gpus)]
    bytes_SR = np.random.default_rng(0).integers(0, 100, (num_gpus, num_gpus)).astype(np.float64)
    np.fill_diagonal(bytes_SR, 0.0)
    bytes_L = fabric.sum_by_link(Messages.from_matrix(bytes_SR))
    assert bytes_L.sum() == pytest.approx((bytes_SR * hops_SR).sum())
    # No path crosses a link twice, and the first and the last links together carry everything.
    for path in fabric.path_SRH.reshape(-1, fabric.path_SRH.shape[-1]):
        assert len(set(path[path >= 0])) == (path >= 0).sum()
    firsts = np.zeros(len(fabric.links))
    np.add.at(firsts, fabric.path_SRH[..., 0][has_path], bytes_SR[has_path])
    assert firsts.sum() == bytes_SR.sum()
    assert (firsts <= bytes_L + 1e-9).all()


def copies_of(dispatch, rank_TK, source_T, node_R):
    return build("dispatch", {"kind": dispatch}, "test").copies(rank_TK, source_T, node_R)


@cases(30)
@given(
    st.integers(0, 60),
    st.integers(1, 6),
    st.sampled_from([(1, 8), (8, 4), (12, 4), (8, 8)]),
    st.integers(0, 1000),
)
def test_dispatch_policies_send_what_they_say(num_tokens, top_k, shape, seed):
    num_ranks, per_node = shape
    rng = np.random.default_rng(seed)
    rank_TK, source_T = (
        rng.integers(0, num_ranks, (num_tokens, top_k)),
        rng.integers(0, num_ranks, num_tokens),
    )
    node_R = np.arange(num_ranks) // per_node
    found = {name: copies_of(name, rank_TK, source_T, node_R) for name in available("dispatch")}
    for copies_SR in found.values():
        assert copies_SR.shape == (num_ranks, num_ranks)
        assert (copies_SR >= 0).all()
        assert not np.diagonal(copies_SR).any()
        assert num_tokens or not copies_SR.any()
    assert (found["per_rank"] <= found["per_expert"]).all()
    crosses = node_R[:, None] != node_R
    assert found["per_node"][crosses].sum() <= found["per_rank"][crosses].sum()
    assert found["per_expert"].sum() == (rank_TK != source_T[:, None]).sum()
    again = copies_of("all_gather", np.tile(rank_TK, 2), source_T, node_R)
    assert np.array_equal(found["all_gather"], again)
    assert found["all_gather"].sum() == num_tokens * (num_ranks - 1)


OVERFLOW = {"capacity": {"factor": 0.7}, "top_k": {"top_k": 2}}
"""Keys that a policy needs; one without an entry here needs none."""


@cases(30)
@given(st.integers(0, 60), st.integers(1, 4), st.integers(4, 9), st.integers(0, 1000))
def test_overflow_policies_keep_pairs_of_each_rank_by_itself(num_tokens, top_k, num_experts, seed):
    rng = np.random.default_rng(seed)
    ids_TJ = rng.random((num_tokens, num_experts)).argsort(axis=1)[:, : top_k + 2].astype(np.int16)
    source_T = np.sort(rng.integers(0, 3, num_tokens))
    rank_TJ = ids_TJ.astype(np.int64) % 3
    tokens = RoutedTokens(ids_TJ, rank_TJ, top_k, source_T, num_experts, 3)
    for kind in available("overflow"):
        policy = build("overflow", {"kind": kind, **OVERFLOW.get(kind, {})}, "test")
        before = ids_TJ.copy()
        admitted_TK, again_TK = (policy.admit(tokens) for _ in range(2))
        assert not find_overflow_fault(admitted_TK, tokens)
        assert np.array_equal(admitted_TK, again_TK)
        assert np.array_equal(ids_TJ, before)
        assert may_drop(policy) or np.array_equal(admitted_TK, ids_TJ[:, :top_k])
        for rank in range(3):
            own_T = source_T == rank
            alone_T = np.zeros(own_T.sum(), dtype=np.int64)
            alone = RoutedTokens(ids_TJ[own_T], rank_TJ[own_T], top_k, alone_T, num_experts, 3)
            assert np.array_equal(admitted_TK[own_T], policy.admit(alone))


@pytest.mark.parametrize("balancing", available("balancing"))
def test_balancing_policies_choose_a_replica_that_there_is_and_do_so_again(balancing):
    policy = build("balancing", {"kind": balancing}, "test")
    rules = [prepare_balancer(policy, 5, np.random.default_rng(1)) for _ in range(2)]
    if not isinstance(rules[0], Rule):
        loads = np.random.default_rng(2).integers(1, 900, (60, 4, 5))
        asked = [
            (Asked(number, number / 9, 9, 9, np.arange(number % 7), {}), Snapshot(*load))
            for number, load in enumerate(loads)
        ]
        chosen = [[choose_replica(rule, *what) for what in asked] for rule in rules]
        assert chosen[0] == chosen[1]
        assert set(chosen[0]) <= set(range(5))
        return
    assert policy.needs_load == (rules[0].turns is None)
    if policy.needs_load:
        assert rules[0] == rules[1]
        assert min(rules[0][:3]) >= 0 < max(rules[0][:3])
    else:
        turns = [rule.turns(600) for rule in rules]
        assert turns[0].tolist() == turns[1].tolist()
        assert set(turns[0].tolist()) == set(range(5))


@pytest.mark.parametrize("order", available("order"))
def test_orders_give_every_request_a_key_that_is_its_own(order):
    policy = build("order", {"kind": order}, "test")
    rng = np.random.default_rng(1)
    columns = [np.sort(rng.random(50)), *rng.integers(1, 900, (2, 50))]
    further = defaultdict(lambda: rng.random(50), priority=rng.integers(4, size=50))

    class AnyColumn(dict):
        """Columns of some rows of a trace, whatever an order asks for."""

        def __init__(self, rows):
            self.rows = rows

        def __missing__(self, name):
            return further[name][self.rows]

        def get(self, name, default=None):
            return self[name]

    def ask(rows):
        return find_keys(policy, Queued(*(column[rows] for column in columns), AnyColumn(rows)))

    whole, part = ask(np.arange(50)), ask(np.arange(0, 50, 2))
    if whole is None:
        assert part is None
        return
    if isinstance(policy, RankedOrder):
        count = rng.integers(2, 200)
        asked = Waiting(1.0, rng.random(count), np.arange(count), *rng.integers(0, 900, (3, count)))
        assert np.isfinite(rank_waiting(policy, asked)).all()
    # A shard of the requests stands in the order of the whole.
    assert part.per_second == whole.per_second
    order_of = np.argsort(whole.offset_N[::2], kind="stable")
    assert np.array_equal(np.argsort(part.offset_N, kind="stable"), order_of)


KV_TIERS = {"host": {"memory_bytes": 1e9, "read_bytes_per_s": 5e10}}


@pytest.mark.parametrize("kv_tiers", available("kv_tiers"))
def test_tiers_of_the_cache_have_room_and_rates(tiny, kv_tiers):
    policy = build("kv_tiers", {"kind": kv_tiers, **KV_TIERS.get(kv_tiers, {})}, "test")
    tier = find_tier(policy, tiny.cluster(8, 8))
    assert min(tier[:3]) > 0
    assert tier.latency_s >= 0


def test_a_host_tier_is_as_fast_as_the_link_of_its_cluster_unless_it_says_so():
    cluster, _ = load_cluster("desktop-rtx-4090", "test")
    link = cluster.host.link
    tier = find_tier(build("kv_tiers", {"kind": "host", "memory_bytes": 1e9}, "test"), cluster)
    assert tier == (1e9, link.copy_bytes_per_s, link.copy_bytes_per_s, link.latency_s)
    own = {"read_bytes_per_s": 3e9, "write_bytes_per_s": 2e9, "latency_s": 0.0}
    policy = build("kv_tiers", {"kind": "host", "memory_bytes": 1e9, **own}, "test")
    assert find_tier(policy, cluster) == (1e9, 3e9, 2e9, 0.0)


SPECULATION = {kind: {"tokens": 3, "accepted": 0.7} for kind in ("module", "ngram")}


@pytest.mark.parametrize("speculation", available("speculation"))
def test_speculation_policies_say_their_drafts_as_numbers(speculation):
    policy = build("speculation", {"kind": speculation, **SPECULATION.get(speculation, {})}, "test")
    drafts = make_drafts(policy)
    assert drafts == policy.drafts()
    assert 1 <= drafts.mean_kept <= 1 + drafts.num_tokens
    assert (drafts.num_tokens == 0) == (speculation == "none")


FAILURES = {"kill": {"at_s": 3.0, "node": 0, "restart_s": 2.0}}
"""Keys that a policy needs; one without an entry here needs none."""


@pytest.mark.parametrize("failures", available("failures"))
@pytest.mark.parametrize("names", [("both",), ("decode", "prefill")])
def test_failure_policies_say_what_happens_in_order_and_of_replicas_that_there_are(failures, names):
    machines = {name: Machines(3, 4, 8) for name in names}
    policy = build("failures", {"kind": failures, **FAILURES.get(failures, {})}, "test")
    found, again = (
        list(islice(policy.changes(machines, np.random.default_rng(1)), 20)) for _ in range(2)
    )
    assert found == again
    assert found
    assert [change.at_s for change in found] == sorted(change.at_s for change in found)
    for change in found:
        assert change.at_s >= 0
        assert change.replicas
        assert set(change.replicas) <= set(range(machines[change.pool].num_replicas))
        assert change.replicas == machines[change.pool].find_replicas(change.gpus)


@pytest.mark.parametrize("recovery", available("recovery"))
def test_recovery_policies_keep_every_expert_on_the_ranks_that_are_left(recovery):
    policy = build("recovery", {"kind": recovery}, "test")
    load_LE = np.random.default_rng(3).uniform(0, 9, (2, 8))
    eplb = build("placement", {"kind": "eplb", "num_slots": 16}, "test")
    placed = eplb.place(load_LE, 4, np.random.default_rng(1))
    for lost_D in ([True, False, False, False], [False, True, False, True]):
        found = shrink_experts(policy, Loss(np.array(lost_D), placed, load_LE))
        assert found is None or set(found.expert_LP[0].tolist()) == set(range(8))
    assert policy.requests in get_args(Requests)
    assert min(policy.detection_s, policy.startup_s, find_interruption(policy, 1e9)) >= 0


@pytest.mark.parametrize("rebalancing", available("rebalancing"))
def test_rebalancing_policies_look_in_order_and_keep_every_expert(rebalancing):
    policy = build("rebalancing", {"kind": rebalancing}, "test")
    looks, again = (list(islice(policy.looks(), 20)) for _ in range(2))
    assert looks == again
    assert looks == sorted(set(looks))
    load_LE = np.random.default_rng(3).uniform(0, 9, (2, 8))
    placed = build("placement", {"kind": "contiguous"}, "test").place(load_LE, 4, None)
    load = ExpertLoad(1.0, 100, load_LE, placed)
    found = decide_placement(policy, load, np.random.default_rng(1))
    assert found is None or found.expert_LP.shape == placed.expert_LP.shape


@pytest.mark.parametrize("caching", available("caching"))
def test_caching_policies_rate_every_expert_and_leave_the_uses_alone(caching):
    policy, rng = build("caching", {"kind": caching}, "test"), np.random.default_rng(2)
    last_LE, count_LE, earlier_LE = rng.integers(0, 9, (3, 2, 8))
    uses = ExpertUses(last_LE, np.minimum(count_LE, last_LE), earlier_LE.astype(np.float64))
    before = [one.copy() for one in uses]
    found, again = (rate_experts(policy, uses) for _ in range(2))
    assert found.shape == (2, 8)
    assert np.isfinite(found).all()
    assert np.array_equal(found, again)
    assert all(np.array_equal(*pair) for pair in zip(uses, before, strict=True))


@pytest.mark.parametrize("prefetching", available("prefetching"))
def test_prefetching_policies_predict_a_layer_from_the_layers_before_it(prefetching):
    policy, rng = build("prefetching", {"kind": prefetching}, "test"), np.random.default_rng(2)
    ids_LTK = rng.random((3, 40, 8)).argsort(axis=2)[:, :, :2].astype(np.int16)
    predictor = prepare_predictor(policy, ids_LTK, 8)
    used_LE = rng.random((3, 8)) < 0.3
    found = predict_experts(predictor, used_LE)
    assert found.shape == (3, 8)
    assert np.array_equal(predict_experts(predictor, used_LE), found)
    # A policy that is right as often as its key says sees its own layer too.
    seen = int(hasattr(policy, "hit_rate"))
    for layer in range(3):
        other_LE = used_LE.copy()
        other_LE[layer + seen :] = ~other_LE[layer + seen :]
        assert np.array_equal(predict_experts(predictor, other_LE)[layer], found[layer])
    assert policy.experts >= 0


SCALING = {
    "schedule": {"changes": [{"at_s": 0, "replicas": 2}, {"at_s": 60, "replicas": 4}]},
    "target_load": {"target": 8.0},
}
"""Keys that a policy needs; one without an entry here needs none."""


@pytest.mark.parametrize("scaling", available("scaling"))
def test_scaling_policies_look_in_order_and_ask_for_replicas_that_there_can_be(scaling):
    policy = build("scaling", {"kind": scaling, **SCALING.get(scaling, {})}, "test")
    most = 5
    looks, again = (list(islice(policy.looks(), 40)) for _ in range(2))
    assert looks == again
    assert looks == sorted(set(looks))
    assert all(at_s > 0 for at_s in looks)
    assert policy.startup_s >= 0
    assert isinstance(policy.replaces_failed, bool)
    replicas, loads, rng = policy.begin(most), [], np.random.default_rng(1)
    assert 1 <= replicas <= most
    for at_s in looks:
        tokens, requests = rng.integers(0, 9000), rng.integers(0, 90)
        loads.append(PoolLoad(at_s, replicas, replicas, 0, int(requests), int(tokens)))
        replicas = policy.decide(loads, most)
        assert replicas == policy.decide(loads, most)
        assert 1 <= replicas <= most
    assert looks or replicas == most


@pytest.mark.parametrize(
    "change",
    [
        {"expert_LP": np.zeros((2, 8), dtype=np.int64)},
        {"expert_LP": np.tile(np.arange(9), (2, 1)), "rank_LP": np.tile(np.arange(9) % 4, (2, 1))},
        {"rank_LP": np.zeros((2, 8), dtype=np.int64)},
        {"num_ranks": 2},
    ],
)
def test_a_placement_that_loses_an_expert_or_moves_slots_is_refused(change):
    load_LE = np.ones((2, 8))
    placed = build("placement", {"kind": "contiguous"}, "test").place(load_LE, 4, None)

    class Wrong:
        def decide(self, load, rng):
            return dataclasses.replace(placed, **change)

    with pytest.raises(UserError, match=r"Wrong.decide\(\) .*as many slots on each rank"):
        decide_placement(Wrong(), ExpertLoad(1.0, 100, load_LE, placed), None)
