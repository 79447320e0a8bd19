"""Steps that are priced by their mix of requests: by the imbalance of the load that is expected of
it, and not of which requests it comes from or where the experts lie.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.pool import start_pools
from simulator.engine.timeline import make_record, serve
from simulator.policies.routing import RecordedSequences
from simulator.results.sampled_steps import find_errors
from simulator.step.mixes import (
    MOST_PROFILES,
    expect_loads,
    find_profiles,
    measure_imbalance,
)
from tests.cases import cases, seeds
from tests.laws.test_recorded_choices import (
    DOMAINS,
    draw_trace,
    exact,
    name_requests,
    write_recording,
)
from tests.parts import change_plan
from tests.shared import shared_file

pytestmark = pytest.mark.shipped_draws

TWO = {"kind": "lognormal", "sigma": 1.0, "num_domains": 2}
KEYS = {"attention_dp": 4, "ep": 4}


def drift(trace):
    """All of one domain at first, all of another at last."""
    count = trace.num_requests
    is_late = np.random.default_rng(1).random(count) < np.arange(count) / count
    return dataclasses.replace(trace, domains=("first", "last"), domain=is_late.astype(np.int64))


def compare(plan, trace):
    """Seconds in steps at the ``step`` over the ``rank`` fidelity."""
    found = [serve(plan, trace, fidelity).steps_of("both") for fidelity in ("step", "rank")]
    return found[0]["duration_s"].sum() / found[1]["duration_s"].sum()


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gpt-oss-20b", "traces/routing/gptoss20b/gptoss20b_decode_64seq.npz"),
        ("deepseek-v2-lite", "traces/routing/esft/deepseek_v2_lite_law.npz"),
        ("deepseek-v2-lite", "traces/routing/esft/deepseek_v2_lite_summary.npz"),
    ],
    ids=["gpt-oss-20b", "law", "summary"],
)
@pytest.mark.parametrize(("lengths", "rate"), [((60, 40), 400.0), ((1200, 10), 200.0)])
def test_steps_of_recorded_requests_take_what_their_ranks_take(tiny, model, path, lengths, rate):
    plan = tiny.plan(model, attention_dp=8, ep=8, routing=exact(shared_file(path)))
    trace = tiny.trace(120, rate, 2 * lengths[0], 2 * lengths[1])
    assert compare(plan, trace) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gpt-oss-20b", "traces/routing/gptoss20b/gptoss20b_decode_64seq.npz"),
        ("deepseek-v2-lite", "traces/routing/esft/deepseek_v2_lite_law.npz"),
    ],
    ids=["gpt-oss-20b", "law"],
)
@pytest.mark.parametrize("lengths", [(200, 120), (2000, 20)], ids=["decodes", "prompts"])
def test_a_runs_own_steps_are_near_what_their_ranks_take(tiny, model, path, lengths):
    plan = tiny.plan(model, attention_dp=8, ep=8, routing=exact(shared_file(path)))
    traces = [tiny.trace(200, 100.0, *(2 * n for n in lengths), seed=seed) for seed in range(1, 6)]
    records = [make_record(serve(plan, trace)) for trace in traces]
    for record in records:
        count = record.price_audit.num_steps
        assert 10 <= count <= 20
        assert abs(record.price_audit.mean) < 0.02
    # Two steps of twenty decide a run's 90th percentile: 1 to 5 % over eight traces of prompts.
    assert np.median([record.price_audit.p90 for record in records]) < 0.04
    (found,) = find_errors(record)
    assert str(found).startswith(
        f"steps of {plan.name} are priced by their mix of requests: {count} of them, priced rank by"
    )


def test_runs_whose_requests_are_alike_are_not_audited(tiny):
    record = tiny.run(tiny.plan("moe", **KEYS), tiny.trace(20))
    assert record.price_audit is None
    assert not list(find_errors(record))


@seeds(7200, 4)
def test_requests_of_drawn_domains_take_what_their_ranks_take(tiny, seed):
    placement = [{"kind": "contiguous"}, {"kind": "eplb", "num_slots": 20}][seed % 2]
    keys = {"replicas": 2} if seed % 4 > 1 else {}
    plan = tiny.plan("moe", **KEYS, **keys, routing=TWO, placement=placement, num_layers=2)
    trace = drift(tiny.trace(80, 2000.0, 200, 20, seed=seed))
    assert compare(plan, trace) == pytest.approx(1.0, abs=0.03)


def test_requests_of_a_drifting_popularity_take_what_their_ranks_take(tiny):
    routing = {"kind": "lognormal", "sigma": 1.0, "drift_s": 0.02}
    plan = tiny.plan("moe", **KEYS, routing=routing, num_layers=2)
    assert compare(plan, tiny.trace(80, 2000.0, 200, 20)) == pytest.approx(1.0, abs=0.03)


def test_a_trace_without_domains_takes_its_experts_from_all(tiny):
    plan, trace = tiny.plan("moe", **KEYS, routing=TWO), tiny.trace(30)
    assert start_pools(plan, trace)["both"].profiles is None
    assert start_pools(plan, drift(trace))["both"].profiles is not None
    one = tiny.plan("moe", **KEYS, routing={**TWO, "num_domains": 1})
    assert start_pools(one, drift(trace))["both"].profiles is None


def test_prices_grow_with_the_imbalance_of_the_mix(tiny):
    plan = tiny.plan("moe", **KEYS, routing=TWO)
    pool = start_pools(plan, drift(tiny.trace(10)))["both"]
    mixes = pool.mixes
    assert (np.diff(mixes.imbalance_M) > 0).all()
    assert len(mixes.prices_M) > 2
    seconds = [
        np.mean([one.expert_step(layer, np.full(4, 512), 0).experts_R.max() for layer in range(4)])
        for one in mixes.prices_M
    ]
    assert (np.diff(seconds) > 0).all()


@cases(20)
@given(st.integers(0, 10_000), st.lists(st.floats(0, 50), min_size=2, max_size=2))
def test_no_mix_is_less_even_than_its_worst_domain(tiny, seed, weights):
    weights = np.array(weights) + 1e-3
    plan = tiny.plan("moe", **KEYS, routing={**TWO, "sigma": 0.5 + seed % 7 / 10})
    pool = start_pools(plan, drift(tiny.trace(4)))["both"]
    load_YPR = pool.mixes.load_YPR
    alone = [measure_imbalance(load_YPR, one) for one in np.eye(2)]
    assert 1.0 <= measure_imbalance(load_YPR, weights) <= max(alone) + 1e-9
    same = measure_imbalance(load_YPR, 3.7 * weights)
    assert same == pytest.approx(measure_imbalance(load_YPR, weights))


def test_expected_loads_are_those_of_the_recording(tiny, tmp_path):
    write_recording(tmp_path / "ids.npz", 2, 16, 2, 3)
    plan = tiny.plan("moe", num_layers=2, **KEYS, routing=exact(tmp_path / "ids.npz"))
    pool = start_pools(plan, draw_trace(tiny, 3))["both"]
    recorded, placed = plan.placement.experts.recorded, plan.placement.experts.placed
    load_YPR = expect_loads(pool.profiles, placed)
    tokens_P = np.array([len(tokens) for tokens in pool.profiles.tokens_P])
    pairs_YR = np.tensordot(load_YPR, tokens_P, axes=(1, 0))
    for layer in range(2):
        rank_E = placed.rank_LP[layer][np.argsort(placed.expert_LP[layer])]
        known_R = np.bincount(rank_E[recorded.ids_LTK[layer].ravel()], minlength=4)
        assert pairs_YR[layer] == pytest.approx(known_R)


@pytest.mark.parametrize("fidelity", ["step", "rank"])
@pytest.mark.parametrize("keys", [{}, {"replicas": 3}, {"scheduling": {"kind": "no_evict"}}])
def test_tokens_are_counted_by_profile(tiny, tmp_path, fidelity, keys):
    write_recording(tmp_path / "ids.npz", 2, 16, 2, 3)
    plan = tiny.plan("moe", num_layers=2, **KEYS, **keys, routing=exact(tmp_path / "ids.npz"))
    trace = name_requests(draw_trace(tiny, 3))
    last = trace.num_requests - 1  # long after the others, whose tokens are counted by then
    for array, value in ((trace.arrival_s, 2.0), (trace.num_input, 1), (trace.num_output, 1)):
        array[last] = value
    plan = change_plan(plan, rebalancing=Listening())
    served = serve(plan, trace, fidelity)
    pool = served.pools["both"]
    known = np.zeros(len(pool.profiles.tokens_P))
    tokens_N = trace.num_input + trace.num_output - 1
    np.add.at(known, pool.profile_N[:last], tokens_N[:last])
    early = [load for load in plan.serving.rebalancing.seen if load.at_s < 2.0]
    assert sum(load.num_tokens for load in early) == known.sum()
    assert sum(load.load_LE for load in early) == pytest.approx(pool.profiles.expect_load(known))


@dataclasses.dataclass(frozen=True)
class Listening:
    """A rebalancing policy that looks often, and leaves experts where they are."""

    seen: list = dataclasses.field(default_factory=list)

    def looks(self):
        return (0.004 * number for number in range(1, 100_000))

    def decide(self, load, rng):
        self.seen.append(load)


Listening.__module__ = "simulator.tests"  # as if it were shipped: not held to its contract


def test_long_recordings_have_few_profiles_each_of_one_domain():
    rng = np.random.default_rng(4)
    domain_Q, length_Q = np.sort(rng.integers(0, 3, 300)), rng.integers(4, 30, 300)
    popular_DE = rng.permuted(np.tile(np.arange(1.0, 33.0) ** -1.0, (3, 1)), axis=1)
    scores = rng.random((2, int(length_Q.sum()), 32)) ** (
        1 / popular_DE[np.repeat(domain_Q, length_Q)]
    )
    ids_LTK = np.argsort(-scores, axis=2)[:, :, :4].astype(np.int16)
    start_Q = np.cumsum(length_Q) - length_Q
    recorded = RecordedSequences(ids_LTK, start_Q, DOMAINS, domain_Q)
    profiles = find_profiles(recorded, 32)
    assert 3 <= len(profiles.tokens_P) <= MOST_PROFILES
    for profile in range(len(profiles.tokens_P)):
        assert len(set(domain_Q[profiles.profile_Q == profile].tolist())) == 1
    assert profiles.load_PLE.sum(axis=2) == pytest.approx(4.0)
    assert sorted(np.concatenate(profiles.tokens_P).tolist()) == list(range(int(length_Q.sum())))
    again = find_profiles(recorded, 32)
    assert np.array_equal(again.profile_Q, profiles.profile_Q)
