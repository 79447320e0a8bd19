"""Requests that take their experts from recorded sequences: loads of every step, layer and rank
equal a count of the recording by hand, and a run's loads do not depend on how it was served.
"""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.engine.timeline import serve
from simulator.step.expert_choices import RecordedTokens
from simulator.step.expert_prices import find_imbalance
from simulator.step.prices import Prices
from simulator.step.program import Batch
from simulator.step.request_choices import bind_requests, describe_choices
from simulator.workload.traces import pick_requests
from tests.cases import seeds
from tests.laws.deployments import SCHEDULERS
from tests.shared import shared_file

DOMAINS = ("code", "law", "prose")


def write_recording(path, num_layers, num_experts, top_k, seed, *, longest=90):
    """Sequences of distinct experts, named ``r0``, ``r1``, ... in any order."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(longest // 2, longest, size=24)
    scores = rng.random((num_layers, int(lengths.sum()), num_experts))
    np.savez(
        path,
        ids=np.argsort(scores, axis=2)[:, :, :top_k],
        seq_lens=lengths,
        domain=np.array(DOMAINS)[rng.permutation(np.arange(24) % 3)],
        request_id=np.array([f"r{number}" for number in rng.permutation(24)]),
    )
    return np.load(path)


def draw_trace(tiny, seed, count=16, longest=60):
    rng = np.random.default_rng(seed)
    trace = tiny.trace(count, float(rng.choice([100.0, 4000.0])), 40, 8, seed=seed)
    return dataclasses.replace(
        trace,
        num_input=np.minimum(trace.num_input, longest),
        num_output=np.minimum(trace.num_output, 10),
        prefix_block_tokens=0,
    )


def name_requests(trace):
    names = np.array([f"r{number}" for number in range(trace.num_requests)], dtype=object)
    return dataclasses.replace(trace, request_ids=names)


def give_domains(trace, seed):
    domain = np.random.default_rng(seed).integers(-1, len(DOMAINS), size=trace.num_requests)
    return dataclasses.replace(trace, domains=DOMAINS, domain=domain)


def exact(path, **more):
    return {"kind": "replay", "trace": str(path), "exact": True, **more}


def record_steps(monkeypatch, plan, trace, fidelity="rank"):
    """Every batch of a run, and the steps of its experts by part."""
    seen, price = [], Prices.price_batch

    def price_batch(self, batch, offset):
        priced = price(self, batch, offset)
        seen.append(priced)
        return priced

    with monkeypatch.context() as patch:
        patch.setattr(Prices, "price_batch", price_batch)
        serve(plan, trace, fidelity)
    return seen


def find_token(recording, name, position):
    """Recorded token at a position of a request: of its own sequence, then of the next ones of that
    domain, and after the last of the first.
    """
    own = recording["request_id"].tolist().index(name)
    first_Q = np.cumsum(recording["seq_lens"]) - recording["seq_lens"]
    alike = np.flatnonzero(recording["domain"] == recording["domain"][own]).tolist()
    turn = alike.index(own)
    while position >= recording["seq_lens"][alike[turn]]:
        position -= recording["seq_lens"][alike[turn]]
        turn = (turn + 1) % len(alike)
    return first_Q[alike[turn]] + position


def count_by_hand(plan, recording, batch, names):
    """Token-expert pairs of each layer and rank, ``[L, R]``, token by token."""
    placed, layout = plan.placement.experts.placed, plan.placement.layout
    num_layers = plan.placement.model.num_moe_layers
    pairs_LR = np.zeros((num_layers, layout.num_ranks))
    sequences = zip(
        *(
            np.concatenate(part)
            for part in (batch.requests, batch.new_tokens, batch.context_tokens)
        ),
        strict=True,
    )
    for number, count, seen in sequences:
        for position in range(seen, seen + count):
            token = find_token(recording, names[number], position)
            for layer in range(num_layers):
                for expert in recording["ids"][layer, token]:
                    place = int(np.flatnonzero(placed.expert_LP[layer] == expert)[0])
                    first = placed.rank_LP[layer, place] * layout.moe_tp
                    pairs_LR[layer, first : first + layout.moe_tp] += 1
    return pairs_LR


SPLITS = (
    {"attention_dp": 4, "ep": 4},
    {"attention_dp": 2, "tp": 2, "ep": 4, "overlap": "two_batch"},
    {"attention_dp": 2, "tp": 2},
    {"tp": 2},
)


@seeds(7100, 6)
def test_loads_equal_a_count_by_hand(tiny, tmp_path, monkeypatch, seed):
    moe = tiny.model("moe", 2).moe
    recording = write_recording(tmp_path / f"{seed}.npz", 2, moe.num_experts, moe.top_k, seed)
    budget = int(np.random.default_rng(seed).choice([32, 256]))
    plan = tiny.plan(
        "moe",
        num_layers=2,
        replicas=1 + seed % 2,
        scheduling=SCHEDULERS[seed % len(SCHEDULERS)] | {"token_budget": budget},
        routing=exact(tmp_path / f"{seed}.npz"),
        **SPLITS[seed % len(SPLITS)],
    )
    trace = name_requests(draw_trace(tiny, seed))
    steps = record_steps(monkeypatch, plan, trace, "message" if seed % 2 else "rank")
    assert steps
    for priced in steps:
        found = sum(np.stack([step.pairs_R for step in steps]) for _, steps in priced.parts)
        by_hand = count_by_hand(plan, recording, priced.batch, trace.request_ids.tolist())
        assert np.array_equal(found, by_hand)


def sum_loads(tiny, monkeypatch, path, trace, fidelity="rank", **keys):
    """Token-expert pairs of each layer and expert over a run, from what was looked up."""
    plan = tiny.plan("moe", num_layers=2, routing=exact(path), **keys)
    choices, counts = bind_requests(plan.placement, trace), Counter()
    ids_LTK = plan.placement.experts.recorded.ids_LTK
    for priced in record_steps(monkeypatch, plan, trace, fidelity):
        for token in choices.find_tokens(priced.batch):
            counts.update((0, int(expert)) for expert in ids_LTK[0, token])
            counts.update((1, int(expert)) for expert in ids_LTK[1, token])
    return counts


@pytest.mark.parametrize(
    "keys",
    [
        {"attention_dp": 4, "ep": 4, "fidelity": "message"},
        {"tp": 2, "replicas": 3, "balancing": {"kind": "random"}},
        {"scheduling": {"kind": "prefill_first", "token_budget": 64, "max_sequences": 4}},
        {"pp": 2},
        {"attention_dp": 2, "seed": 9},
    ],
    ids=["ranks and messages", "replicas", "another scheduler", "a pipeline", "another seed"],
)
def test_a_runs_loads_do_not_depend_on_how_it_was_served(tiny, tmp_path, monkeypatch, keys):
    write_recording(tmp_path / "ids.npz", 2, 16, 2, 3)
    trace = name_requests(draw_trace(tiny, 5))
    usual = sum_loads(tiny, monkeypatch, tmp_path / "ids.npz", trace)
    assert sum_loads(tiny, monkeypatch, tmp_path / "ids.npz", trace, **keys) == usual
    asked = int((trace.num_input + trace.num_output - 1).sum())
    assert sum(usual.values()) == asked * 2 * 2


def test_requests_draw_among_the_sequences_of_their_domain(tiny, tmp_path):
    recording = write_recording(tmp_path / "ids.npz", 2, 16, 2, 3, longest=400)
    plan = tiny.plan("moe", num_layers=2, routing=exact(tmp_path / "ids.npz"))
    trace = give_domains(draw_trace(tiny, 5, count=200), 7)
    choices = bind_requests(plan.placement, trace)
    domain_T = np.repeat(recording["domain"], recording["seq_lens"])
    seen = {}
    for number in range(200):
        batch = one_sequence(number, 50)
        tokens_T = choices.find_tokens(batch)
        assert (np.diff(tokens_T) > 0).all()
        if trace.domain[number] >= 0:
            assert (domain_T[tokens_T] == DOMAINS[trace.domain[number]]).all()
        seen.setdefault(int(trace.domain[number]), set()).add(int(tokens_T[0]))
    first_Q = np.cumsum(recording["seq_lens"]) - recording["seq_lens"]
    assert set().union(*seen.values()) <= set(first_Q.tolist())  # all begin with their sequence
    assert len(seen[-1]) > 12  # those of no domain draw among all
    assert min(map(len, seen.values())) >= 7  # of eight


def one_sequence(number, count, context=0):
    return Batch(
        (np.array([count]),),
        (np.array([context]),),
        (np.array([False]),),
        np.array([0]),
        (np.array([number]),),
    )


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_a_part_of_a_trace_is_served_with_the_experts_of_its_requests(
    tiny, tmp_path, monkeypatch, fidelity
):
    """Batches name requests by their numbers in the whole trace."""
    recording = write_recording(tmp_path / "ids.npz", 2, 16, 2, 3)
    plan = tiny.plan("moe", num_layers=2, attention_dp=4, ep=4, routing=exact(tmp_path / "ids.npz"))
    whole = name_requests(draw_trace(tiny, 5, count=24))
    part = pick_requests(whole, np.array([9, 15, 16, 23]))
    steps = record_steps(monkeypatch, plan, part, fidelity)  # those of "step" are audited ones
    assert steps
    for priced in steps:
        found = sum(np.stack([step.pairs_R for step in steps]) for _, steps in priced.parts)
        by_hand = count_by_hand(plan, recording, priced.batch, whole.request_ids.tolist())
        assert np.array_equal(found, by_hand)


def test_a_run_says_where_experts_come_from(tiny, tmp_path):
    write_recording(tmp_path / "ids.npz", 2, 16, 2, 3)
    plan = tiny.plan("moe", num_layers=2, routing=exact(tmp_path / "ids.npz"))
    trace = draw_trace(tiny, 5, count=30)
    names = np.array(["r3", *["unknown"] * 29], dtype=object)
    domain = np.array([-1] * 11 + [0] * 9 + [3] * 10)
    trace = dataclasses.replace(
        trace, request_ids=names, domains=(*DOMAINS, "verse"), domain=domain
    )
    (found,) = describe_choices(plan.placement, trace)
    assert re.findall(r"(\d+) by", str(found)) == ["1", "9", "20"]
    assert "no domain 'verse'" in str(found)
    even = tiny.plan("moe", routing={"kind": "uniform"})
    assert not list(describe_choices(even.placement, trace))


def test_counts_of_experts_refuse_exact_routing(tiny, tmp_path):
    np.savez(tmp_path / "counts.npz", counts=np.ones((2, 16)))
    with pytest.raises(UserError, match="takes the experts of every token, and it holds counts"):
        tiny.plan("moe", num_layers=2, routing=exact(tmp_path / "counts.npz"))


@pytest.mark.parametrize(
    ("num_requests", "published"), [(1, 1.89), (4, 1.56)], ids=["one request", "four requests"]
)
def test_fewer_requests_load_ranks_less_evenly(tiny, num_requests, published):
    """256 tokens of gpt-oss-20b over 8 ranks, busiest over mean; 256 tokens of as many requests
    have 1.46.
    """
    path = shared_file("traces/routing/gptoss20b/gptoss20b_decode_64seq.npz")
    plan = tiny.plan("gpt-oss-20b", attention_dp=8, ep=8, routing=exact(path))
    prices = Prices(plan.placement, 256)
    recorded, ratios = plan.placement.experts.recorded, []
    length_Q = np.diff(recorded.start_Q, append=recorded.ids_LTK.shape[1])
    tokens, rng = 256 // num_requests, np.random.default_rng(1)
    for _ in range(60):
        chosen = rng.choice(np.flatnonzero(length_Q >= tokens), num_requests, replace=False)
        place_T = np.concatenate([recorded.start_Q[own] + np.arange(tokens) for own in chosen])
        step = RecordedTokens(
            plan.placement.experts, plan.placement.layout, np.full(8, 32), recorded, place_T
        )
        steps = prices.experts.price_tokens(step, [(layer, 0) for layer in range(24)])
        ratios.append(np.mean([find_imbalance(one.pairs_R) for one in steps]))
    assert np.mean(ratios) == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize("change", ["padded", "empty", "chosen"])
def test_a_domain_without_tokens_is_none(tiny, tmp_path, change):
    """All of its tokens are padding, its only sequence is empty, or another domain was chosen."""
    write_recording(tmp_path / "ids.npz", 2, 16, 2, 3)
    arrays = dict(np.load(tmp_path / "ids.npz"))
    keys = {"domain": "code"} if change == "chosen" else {}
    if change == "padded":
        is_law = np.repeat(arrays["domain"] == "law", arrays["seq_lens"])
        arrays["ids"][:, is_law] = -1
    if change == "empty":
        arrays["domain"][arrays["domain"] == "law"] = "code"
        arrays["domain"] = np.append(arrays["domain"], "law")
        arrays["seq_lens"] = np.append(arrays["seq_lens"], 0)
        arrays["request_id"] = np.append(arrays["request_id"], "r24")
    np.savez(tmp_path / "ids.npz", **arrays)
    plan = tiny.plan("moe", num_layers=2, routing=exact(tmp_path / "ids.npz", **keys))
    trace = give_domains(draw_trace(tiny, 3), 4)
    assert "law" not in plan.placement.experts.recorded.domains
    (found,) = describe_choices(plan.placement, trace)
    assert "'law'" in found.facts["unknown"]
    serve(plan, trace, "rank")
    serve(plan, trace, "step")


def test_a_request_that_is_recorded_twice_is_refused(tiny, tmp_path):
    arrays = dict(write_recording(tmp_path / "ids.npz", 2, 16, 2, 3))
    arrays["request_id"][:] = "r0"
    np.savez(tmp_path / "ids.npz", **arrays)
    with pytest.raises(UserError, match="24 sequences are of request 'r0'; leave one"):
        tiny.plan("moe", num_layers=2, routing=exact(tmp_path / "ids.npz"))
