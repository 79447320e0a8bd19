"""Laws of what a plan's answer depends on: more of what hurts never costs less, and the same
question has the same answer.
"""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic_core import to_jsonable_python

from simulator.base.frozen import validate
from simulator.config.capacity import Question, Spare
from simulator.planner.conditions import (
    Change,
    Trials,
    _resample_blocks,
    choose_slo,
)
from simulator.planner.explore import ClusterSize, Evaluation, Explorer
from simulator.planner.losses import idle_costs, list_survivors, spare_nodes, with_losses
from simulator.planner.screen import Candidate
from simulator.planner.search import search
from simulator.planner.space import ReplicaShape
from simulator.planner.store import Store
from simulator.planner.traffic import Traffic
from simulator.planner.trial import Outcome
from simulator.planner.uncertainty.assessment import assess
from simulator.planner.uncertainty.sensitivity import RATES
from simulator.workload.requests import load_requests
from tests.findings_database import read_findings
from tests.laws import tiny_question

QUESTION = tiny_question.QUESTION | {
    "space": tiny_question.QUESTION["space"] | {"disaggregate": False}
}
MOE, DENSE = 0, 1


def question(**keys):
    return validate(Question, {**QUESTION, **keys}, "test")


def trials(**keys):
    return Trials(question(**keys).model_dump_json(), str(Path()), None)


def candidate(model, tp=1, attention_dp=1, ep=1, replicas=1, prefill=None):
    shape = ReplicaShape(model, 0, tp, attention_dp, ep, "", "bf16", 0, "none")
    return Candidate(shape, 2048, prefill, replicas, 1, 0.0, 1, 1, 0.01, 0.1)


def gpus(evaluation):
    return evaluation.cluster_size.size if evaluation.cluster_size is not None else np.inf


def test_a_looser_target_never_costs_more():
    sizes = [
        gpus(trials(targets={"tpot_s": {"p90": limit}}).find(candidate(DENSE)))
        for limit in (0.009, 0.012, 0.02, 0.05)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_more_traffic_never_needs_fewer_gpus():
    sizes = [gpus(trials().find(candidate(MOE), Change(rate=rate))) for rate in (0.25, 1.0, 4.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_a_faster_network_never_costs_more():
    split = candidate(MOE, attention_dp=4, ep=4)
    asked = trials(targets={"tpot_s": {"p90": 0.02}})
    found = [
        asked.trial(split, ClusterSize(0, 1), Change(network=speed)) for speed in (0.02, 1.0, 4.0)
    ]
    worst = [outcome.worst for outcome in found]
    assert worst == sorted(worst, reverse=True)
    assert worst[-1] < worst[0]
    sizes = [gpus(asked.find(split, Change(network=speed))) for speed in (0.02, 1.0, 4.0)]
    assert sizes == sorted(sizes, reverse=True)


def test_slower_kernels_never_cost_less():
    sizes = [
        gpus(trials().find(candidate(DENSE), Change(slower=factor)))
        for factor in (0.6, 1.0, 1.4, 1.8)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_longer_prompts_never_cost_less_and_fit_the_context():
    asked = trials()
    assert gpus(asked.find(candidate(DENSE), Change(prompts=4.0))) >= gpus(
        asked.find(candidate(DENSE))
    )
    model = asked.space.models[DENSE]
    far = asked.open_explorer(candidate(DENSE), Change(prompts=10_000.0)).traffic.trace
    assert int((far.num_input + far.num_output).max()) == model.max_context_tokens


def test_losing_a_node_never_raises_goodput():
    asked = trials(targets={"tpot_s": {"p90": 0.02}, "ttft_s": {"p90": 0.1}})
    rows = with_losses(asked, candidate(DENSE, tp=8), ClusterSize(24, 3))
    assert [row.lost for row in rows] == ["nothing", "1 GPU", "1 node", "2 nodes"]
    assert [row.replicas_left for row in rows] == [3, 2, 2, 1]
    for name in ("goodput_per_s", "attainment"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values, reverse=True)
    worst = [row.worst_ratio for row in rows]
    assert worst == sorted(worst)
    gpu, node = with_losses(asked, candidate(DENSE, tp=8), ClusterSize(8, 1))[1:3]
    for nothing, gpus in ((gpu, 7), (node, 0)):
        found = nothing.met, nothing.goodput_per_s, nothing.gpus_left
        assert found == (False, 0.0, gpus)


def test_more_spare_never_needs_fewer_machines():
    rows = spare_nodes(trials(), candidate(MOE, tp=8))
    sizes = [row.gpus for row in rows]
    assert sizes == sorted(sizes)
    assert all(later.gpus >= 8 * (later.nodes_lost + 1) for later in rows)
    assert not any(row.gpus_in_whole_nodes for row in rows), "they are whole nodes"
    assert all(0.9 < row.enough_low < row.enough_high < 1 for row in rows)


def test_a_replica_of_one_gpu_survives_a_node_on_another_one():
    """Two GPUs on two nodes, not two nodes of eight; both are told."""
    none, gpu, node, nodes = spare_nodes(trials(), candidate(DENSE))
    assert (none.gpus, none.nodes, none.gpus_in_whole_nodes) == (1, 1, None)
    assert (gpu.gpus, gpu.nodes) == (2, 1)
    assert (node.gpus, node.nodes, node.gpus_in_whole_nodes) == (2, 2, 16)
    assert node.cost_per_hour_in_whole_nodes == pytest.approx(8 * node.cost_per_hour)
    # Three GPUs are not offered.
    assert (nodes.gpus, nodes.nodes, nodes.gpus_in_whole_nodes) == (4, 4, 24)


@given(
    replicas=st.integers(1, 12),
    tp=st.sampled_from([1, 2, 4, 8]),
    nodes=st.integers(0, 2),
    gpus=st.integers(0, 2),
    is_pair=st.booleans(),
)
def test_what_is_held_free_stands_what_may_be_lost(replicas, tp, nodes, gpus, is_pair):
    """On the smallest cluster that holds the replicas and the spare, as many are left."""
    assume(not (nodes and gpus))
    lost = Spare(nodes=nodes, gpus=gpus)
    space = trials(spare=lost.model_dump()).space
    asked = candidate(DENSE, tp=tp, prefill=candidate(DENSE, tp=tp).shape if is_pair else None)
    both = replicas * (2 if is_pair else 1)
    size = space.find_cluster(asked.sides, (replicas, replicas * is_pair))
    assume(size is not None)
    cluster_size = ClusterSize(size, replicas, replicas if is_pair else 0)
    host_gpus = space.host_gpus(asked.shape, asked.prefill)
    # The spare GPUs are replicas' places too: with all of them filled, the rest is enough.
    full = cluster_size._replace(replicas=size // tp - cluster_size.prefill_replicas)
    for left in list_survivors(asked, full, lost, host_gpus):
        assert left.replicas + left.prefill_replicas >= both


@given(
    st.sampled_from([8, 16, 32, 64]),
    st.floats(0.05, 40),
    st.floats(0.05, 40),
    st.integers(0, 2),
)
def test_a_cluster_is_split_between_pools_as_is_best_for_the_worst_target(
    size, first, later, spare
):
    """Brute force, where each pool's latencies fall with its replicas."""
    asked = candidate(DENSE, tp=2, prefill=candidate(DENSE, tp=4).shape)
    space = trials(spare={"gpus": spare}).space
    explorer, tried = Explorer(space, asked, None, 0), []

    def measure(replicas, prompts):
        return {"ttft_s.p90": first / prompts, "tpot_s.p90": later / replicas}

    def trial(cluster_size):
        tried.append(cluster_size)
        return Outcome(measure(*cluster_size[1:]), {}, 1.0, 1.0)

    explorer.trial = trial
    fills = space.list_fills(size, *asked.sides)
    assume(fills)
    found, outcome = explorer.fill(size)
    assert outcome.worst == min(max(measure(*counts).values()) for counts in fills)
    assert outcome.ratios == measure(*found[1:])
    assert found.size == size
    assert len(tried) <= 1 + np.log2(len(fills))


@pytest.mark.parametrize("prefill", [None, candidate(DENSE, tp=8).shape])
def test_what_no_cluster_has_room_for_has_no_size_and_takes_up_nothing(prefill):
    asked = candidate(DENSE, tp=8, prefill=prefill)
    space = trials(spare={"nodes": 8}).space
    found = Explorer(space, asked, None, 0).find()
    assert found == Evaluation(asked, None, None, np.inf, (), found.why)
    assert found.why


ONE, TWO, GPU = Spare(nodes=1), Spare(nodes=2), Spare(gpus=1)


@pytest.mark.parametrize(
    ("split", "cluster", "lost", "left"),
    [
        ({"tp": 8}, (32, 4), ONE, [(32, 3)]),
        # Four replicas on a node go together, and a replica over two nodes goes when either does.
        ({"tp": 2}, (16, 8), ONE, [(16, 4)]),
        ({"attention_dp": 16}, (64, 4), TWO, [(64, 2)]),
        # A node that stands idle takes the lost one's place.
        ({"tp": 8}, (32, 3), ONE, [(32, 3)]),
        ({"tp": 8}, (32, 3), TWO, [(32, 2)]),
        # Of pools either may lose, and both outcomes are looked at.
        ({"tp": 8, "prefill": candidate(DENSE, tp=8).shape}, (40, 3, 2), ONE,
         [(40, 3, 1), (40, 2, 2)]),
        # A lost GPU takes its replica with it, unless as many GPUs as that has stand idle.
        ({"tp": 2}, (16, 8), GPU, [(16, 7)]),
        ({"tp": 2}, (16, 7), GPU, [(16, 7)]),
        ({"tp": 4}, (8, 1), Spare(gpus=2), [(8, 0)]),
    ],
)  # fmt: skip
def test_which_replicas_are_left(split, cluster, lost, left):
    found = list_survivors(candidate(DENSE, **split), ClusterSize(*cluster), lost, 8)
    assert found == [ClusterSize(*one) for one in left]


def test_replicas_on_nodes_of_their_own_are_lost_one_by_one():
    assert list_survivors(candidate(DENSE), ClusterSize(4, 4), ONE, 1) == [ClusterSize(4, 3)]


def test_copies_of_experts_take_memory():
    split = candidate(MOE, attention_dp=4, ep=4)
    copying = split._replace(shape=split.shape._replace(slots=40))
    found = [
        Evaluation(one, ClusterSize(8, number), None, 0.0)
        for number, one in ((1, split), (2, copying))
    ]
    idle = idle_costs(trials(), *found)
    spare = idle.spare_experts
    assert (idle.unused_gpus, spare.slots) == (4, 8)
    assert spare.share_of_slots == pytest.approx(0.2)
    assert 0 < spare.share_of_memory < 0.2
    assert spare.cache_tokens_forgone > 0
    assert idle_costs(trials(), found[0], None).spare_experts is None
    held_back = idle_costs(
        trials(spare={"nodes": 1}),
        found[0]._replace(cluster_size=ClusterSize(16, 1)),
        None,
    )
    assert (held_back.unused_gpus, held_back.held_back_gpus) == (8, 4), (
        "what is held back is counted once"
    )


def test_requests_are_promised_what_targets_ask_for():
    assert choose_slo(question()).tpot_s == 0.02
    assert choose_slo(question(targets={"e2e_s": {"p50": 1.0, "p99": 4.0}})).e2e_s == 4.0
    own = question(workload={**QUESTION["workload"], "slo": {"ttft_s": 1.0}})
    assert (choose_slo(own).ttft_s, choose_slo(own).tpot_s) == (1.0, None)


def test_another_sample_of_a_recorded_trace_has_the_same_requests():
    trace = load_requests(question().workload, Path(), 3)
    trace = replace(trace, num_input=np.arange(trace.num_requests) + 1)
    again = _resample_blocks(Traffic.measure(trace, 20, 0.5), np.random.default_rng(1))
    np.testing.assert_array_equal(again.trace.num_input[:20], trace.num_input[:20])
    assert set(again.trace.num_input[20:]) <= set(trace.num_input[20:])
    assert (again.trace.num_requests, again.lead) == (trace.num_requests, 20)
    assert np.all(np.diff(again.trace.arrival_s) >= 0)
    assert not np.array_equal(again.trace.num_input, trace.num_input)


@lru_cache(maxsize=1)
def found():
    return search(question(), Path(), Store(None), workers=1)


@lru_cache(maxsize=1)
def all_doubts():
    return assess(found(), workers=1)


def test_the_same_question_has_the_same_doubts(tmp_path):
    stored = found()._replace(trials=replace(found().trials, place=str(tmp_path)))
    anew, kept = (assess(stored, workers=1) for _ in range(2))
    texts = (to_jsonable_python(answer) for answer in (all_doubts(), anew, kept))
    assert len({json.dumps(text, sort_keys=True) for text in texts}) == 1
    assert read_findings(tmp_path)


def test_doubts_are_whole():
    answer = all_doubts()
    assert [row.name for row in answer.sensitivity] == [
        "traffic",
        "prompts",
        "network",
        "skew",
        "price",
    ]
    by_name = {row.name: row for row in answer.sensitivity}
    assert by_name["price"].cost_ratio == pytest.approx(0.7)
    assert by_name["traffic"].cost_ratio >= 1.0
    assert not by_name["price"].flips
    certain = answer.confidence
    assert certain.needed_cost_low <= certain.needed_cost_high
    assert certain.headroom_low <= certain.headroom_high
    assert 0 <= certain.meets_targets <= 1
    assert 0 <= certain.moe_beats_dense <= certain.moe_costs_no_more_than_dense <= 1
    for figure in certain.figures.values():
        assert figure.low <= figure.value <= figure.high
    compared = answer.moe_vs_dense
    assert compared.cost_ratio == compared.moe.cost_per_hour / compared.dense.cost_per_hour
    assert [point.rate for point in compared.rates] == list(RATES)
    for kind in ("moe", "dense"):
        costs = [
            getattr(point, f"{kind}_cost_per_hour")
            for point in compared.rates
            if getattr(point, f"{kind}_cost_per_hour") is not None
        ]
        assert costs == sorted(costs)


def test_as_asked_is_what_the_search_found():
    best = found().evaluations[0]
    assert trials().find(best.candidate).cluster_size == best.cluster_size
