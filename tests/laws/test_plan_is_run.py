"""What a plan recommends is what a run of its file says: the same figures, to the last digit; and
laws of how a size is searched for, a cluster filled, and of the requests that tell.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import simulator as moesim
from simulator.base.frozen import validate
from simulator.config.capacity import Question, Targets
from simulator.config.workload import SLO
from simulator.planner.answer import make_answer
from simulator.planner.conditions import WHOLE, Change, Trials, identity
from simulator.planner.explore import ClusterSize, Explorer, find_size
from simulator.planner.handover import scenario_text
from simulator.planner.headroom import measure_headroom
from simulator.planner.screen import Candidate
from simulator.planner.search import search
from simulator.planner.space import ReplicaShape, count_spares
from simulator.planner.store import Store, key_of
from simulator.planner.traffic import LEAST_STAYS, Traffic, find_stretch, traffic_of
from simulator.planner.trial import estimate_sampling_error, measure_outcome
from simulator.results.answer.folder import PlanResults
from simulator.workload.traces import RequestTrace
from tests.cases import cases
from tests.laws.tiny_question import ENGINE

DENSE, MOE = "llama-3.1-8b", "gpt-oss-20b"
DOMAINS = {"mixes": [{"shares": {"chat": 0.6, "code": 0.4}}, {"at_s": 20, "shares": {"code": 1.0}}]}
SPARES = {"availability": 0.999, "mtbf_gpu_hours_low": 2000.0, "repair_hours": 4.0}


def write_log(kind, path, count=500, rate=12.0):
    """Requests with lengths that vary, at a mean rate."""
    rng, now, times = np.random.default_rng(7), 0.0, []
    while len(times) < count:
        factor = {"bursty": 2.2 if now // 8 % 3 == 0 else 0.4, "diurnal": 1 + 0.8 * np.sin(now / 9)}
        now += rng.exponential(1 / (rate * factor.get(kind, 1.0)))
        times.append(now)
    lengths = {
        "num_input": rng.lognormal(6.3, 0.6, count).astype(int) + 1,
        "num_output": rng.lognormal(3.7, 0.5, count).astype(int) + 2,
    }
    pd.DataFrame({"arrival_s": times} | lengths).to_csv(path, index=False)
    return str(path)


def question(log, model, disaggregate=False, rate_scale=2.0, workload=None, **changes):
    table = {
        "name": "drawn",
        "seed": 3,
        "workload": {"requests": log, "rate_scale": rate_scale} | (workload or {}),
        "targets": {"ttft_s": {"p95": 0.2}, "tpot_s": {"mean": 0.009, "p90": 0.011}},
        "models": [{"model": model, "engine": ENGINE}],
        "clusters": [{"cluster": "h100-sxm", "max_gpus": 16}],
        "space": {
            "tp": [1],
            "attention_dp": [1],
            "token_budgets": [2048],
            "overlap": ["none"],
            "redundant_experts": [0.0],
            "disaggregate": disaggregate,
        },
    }
    return validate(Question, table | changes, "test")


def trials(asked):
    return Trials(asked.model_dump_json(), str(Path()), None)


SPACE = trials(question("azure-conv", DENSE)).space
SHAPE = ReplicaShape(0, 0, 1, 1, 1, "", "bf16", 0, "none")
CANDIDATE = Candidate(SHAPE, 2048, None, 1, 0, 0.0, 1, 1, 0.01, 0.1)


def same_figures(row, outcome):
    """Assert that a row of a run's summary has all figures of a plan's outcome."""
    told = {
        "output_tokens_per_s": outcome.output_tokens_per_s,
        "slo_attainment": outcome.kept_share,
    }
    for name, value in outcome.measured.items():
        latency, _, level = name.partition(".")
        if level:
            told[f"{latency.removesuffix('_s')}_{level}_s"] = value
    assert len(told) == 5
    assert {name: float(row[name]) for name in told} == told


DRAWN = [
    pytest.param("bursty", DENSE, {"peak_s": 20.0}, id="a peak"),
    pytest.param("diurnal", MOE, {}, id="a whole log"),
    pytest.param("steady", MOE, {"disaggregate": True}, id="pools"),
    pytest.param("bursty", MOE, {"disaggregate": True, "peak_s": 30.0}, id="a peak of pools"),
    pytest.param("diurnal", MOE, {"peak_s": 9.0, "workload": {"domains": DOMAINS}}, id="domains"),
    pytest.param("steady", DENSE, {"failures": SPARES}, id="spare replicas"),
    pytest.param("diurnal", DENSE, {"peak_s": 20.0, "rate_scale": 4.0}, id="a faster peak"),
    pytest.param("steady", MOE, {"workload": {"judge_from_s": 3.0}}, id="a lead-in of its own"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "model", "changes"), DRAWN)
def test_a_run_of_what_is_recommended_says_what_the_plan_says(kind, model, changes, tmp_path):
    """So does one of the best with pools, or without; and the size below really misses."""
    asked = question(write_log(kind, tmp_path / "log.csv"), model, **changes)
    found, folder = search(asked, Path(), Store(None), workers=1), tmp_path / "plan"
    answer = make_answer(found, target=folder)
    PlanResults({"command": "moesim plan"}, answer).write(folder)
    assert (folder / "traffic.parquet").exists() == ("domains" in changes.get("workload", {}))
    best, below = found.met[0], answer.sizes.smaller
    assert answer.recommended.output_tokens_per_s == best.outcome.output_tokens_per_s
    same_figures(moesim.run(folder / "recommended.toml").summary.iloc[0], best.outcome)
    others = [one for one in found.met if has_pools(one) != has_pools(best)][:1]
    assert bool(others) == changes.get("disaggregate", False)
    if below is not None and asked.failures.availability is None:
        cluster_size, outcome = found.trials.open_explorer(best.candidate, WHOLE).fill(below.gpus)
        assert outcome.worst == below.worst_ratio > 1
        others.append(best._replace(cluster_size=cluster_size, outcome=outcome))
    if others:
        path = folder / "others.toml"
        path.write_text(scenario_text(found, others, folder))
        summary = moesim.run(path).summary
        for (_, row), one in zip(summary.iterrows(), others, strict=True):
            same_figures(row, one.outcome)


@pytest.mark.slow
@pytest.mark.parametrize("has_pools", [False, True])
@pytest.mark.parametrize("model", [DENSE, MOE])
@pytest.mark.parametrize("kind", ["bursty", "diurnal", "steady"])
def test_more_replicas_are_no_worse_within_sampling_error(kind, model, has_pools, tmp_path):
    asked = question(write_log(kind, tmp_path / "log.csv"), model, rate_scale=8.0)
    candidate = CANDIDATE._replace(prefill=SHAPE if has_pools else None)
    explorer = trials(asked).open_explorer(candidate, WHOLE)
    worst, errors = [], []
    for replicas in (1, 2, 3, 4, 6, 8, 12, 16):
        size = ClusterSize(16 * (1 + has_pools), replicas, replicas * has_pools)
        outcome = explorer.trial(size)
        judged = explorer.serve(size).iloc[explorer.traffic.lead :]
        given = asked.targets, explorer.space.question.workload.slo
        errors.append(estimate_sampling_error(judged, outcome, *given))
        worst.append(outcome.worst)
    assert worst[0] > 1 > worst[-1]
    least = np.minimum.accumulate(worst)
    assert (np.array(worst) <= least + 2 * np.array(errors)).all()


def has_pools(evaluation):
    return evaluation.candidate.prefill is not None


@pytest.mark.slow
def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    rates = []
    for rate in (12.0, 3.0):
        asked = question(write_log("steady", tmp_path / "log.csv", rate=rate), DENSE)
        found = search(asked, Path(), Store(None), workers=1)
        rates.append(found.traffic.rate_per_s)
        best, traffic = found.met[0], traffic_of(asked, Path())
        alone = Explorer(found.space, best.candidate, traffic, asked.seed)
        assert alone.trial(best.cluster_size).measured == best.outcome.measured
    assert rates[1] < rates[0] / 3


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"peak_s": 20.0}, {"disaggregate": True}])
@pytest.mark.parametrize("kind", ["bursty", "diurnal"])
def test_traffic_times_two_is_the_question_with_twice_the_rate_scale(kind, changes, tmp_path):
    log = write_log(kind, tmp_path / "log.csv")
    one, two = (question(log, MOE, rate_scale=rate, **changes) for rate in (2.0, 4.0))
    candidate = CANDIDATE._replace(prefill=SHAPE if "disaggregate" in changes else None)
    for is_whole in (False, True):
        by_change = trials(one).find(candidate, Change(rate=2.0, is_whole=is_whole))
        by_key = trials(two).find(candidate, Change(is_whole=is_whole))
        assert by_change.size is not None
        assert (by_change.cluster_size, by_change.outcome) == (by_key.cluster_size, by_key.outcome)
        assert by_change.size >= trials(one).find(candidate, Change(is_whole=is_whole)).size


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bursty", "diurnal", "steady"])
@pytest.mark.parametrize("model", [DENSE, MOE])
def test_what_carries_twice_the_traffic_needs_no_more_at_twice_the_traffic(kind, model, tmp_path):
    asked = question(write_log(kind, tmp_path / "log.csv"), model, rate_scale=1.0)
    tried, candidate = trials(asked), CANDIDATE
    least, needed = (tried.find(candidate, Change(rate=rate)).size for rate in (1.0, 2.0))
    sizes = [size for size in SPACE.sizes(*candidate.sides) if size >= least]
    headrooms = [
        measure_headroom(tried, candidate, ClusterSize(size, size), near=2.0).factor
        for size in sizes
    ]
    assert headrooms[-1] >= 2
    assert all(needed <= size for size, most in zip(sizes, headrooms, strict=True) if most >= 2)


@pytest.mark.parametrize(("floor", "is_same"), [({}, True), ({"output_tokens_per_s": 50.0}, False)])
def test_half_of_more_traffic_is_stored_apart_where_its_tokens_are_a_target(
    floor, is_same, tmp_path
):
    """Half of the traffic is asked for half of the tokens; as asked it is for all of them."""
    log, targets = write_log("steady", tmp_path / "log.csv"), {"ttft_s": {"p95": 0.2}} | floor
    more, same = (question(log, DENSE, rate_scale=rate, targets=targets) for rate in (2.0, 1.0))
    half = trials(more).open_explorer(CANDIDATE, Change(rate=0.5))
    whole = trials(same).open_explorer(CANDIDATE)
    assert half.traffic.digest == whole.traffic.digest
    keys = {key_of(identity(one, has_begun=False)) for one in (half, whole)}
    assert (len(keys) == 1) == is_same


@given(st.lists(st.sampled_from([0.6, 0.9, 1.1, 1.6]), min_size=1, max_size=40), st.integers(0, 39))
def test_a_size_is_the_smallest_from_which_all_that_were_tried_meet(worst, start):
    """Whatever pattern of sizes meets the targets. Two below and one above are tried, unless a
    target is missed or kept by half and more.
    """
    tried = {}

    def measure(place):
        assert place not in tried
        tried[place] = worst[place]
        return worst[place]

    found, count = find_size(len(worst), start, measure), len(worst)
    if found is None:
        assert tried[count - 1] > 1
        return
    assert all(ratio <= 1 for place, ratio in tried.items() if place >= found)
    assert not found or tried[found - 1] > 1
    assert found < 2 or tried[found - 1] > 1.5 or found - 2 in tried
    assert found + 1 == count or tried[found] < 1 / 1.5 or found + 1 in tried


@given(st.integers(1, 10_000), st.data())
def test_few_sizes_are_tried_where_larger_is_better(count, data):
    first, start = data.draw(st.integers(0, count)), data.draw(st.integers(0, count - 1))
    tried = []

    def measure(place):
        tried.append(place)
        return 0.99 if place >= first else 1.01

    assert find_size(count, start, measure) == (first if first < count else None)
    assert len(tried) <= 2 * math.log2(count) + 6


@given(st.lists(st.booleans(), min_size=5, max_size=5), st.integers(1, 16))
def test_a_smaller_cluster_that_meets_the_targets_by_chance_is_named(meets, replicas):
    """On clusters of 1, 2, 4, 8 and 16 GPUs."""
    explorer = Explorer(SPACE, CANDIDATE._replace(replicas=replicas), None, 0)
    sizes = SPACE.sizes(*CANDIDATE.sides)
    assert sizes == (1, 2, 4, 8, 16)
    tried = {}

    def fill(size):
        tried[size] = meets[sizes.index(size)]
        return ClusterSize(size, size), SimpleNamespace(
            met=tried[size], size=size, binding_target="", worst=0.9 if tried[size] else 1.1
        )

    explorer.fill = fill
    explorer._record_size = lambda *found, below, smaller: (found[0].size, below, smaller)
    explorer._record_miss = lambda *found: None
    explorer._measure_smaller = lambda size: size
    found = explorer.find()
    if found is None:
        assert not meets[-1]
        return
    size, below, smaller = found
    assert below is None if size == 1 else (below.size == size // 2 and not below.met)
    assert smaller == max((one for one, met in tried.items() if met and one < size), default=None)


@cases(60)
@given(
    size=st.integers(1, 48),
    tp=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 8])),
    has_pools=st.booleans(),
    spare=st.sampled_from([{}, {"gpus": 1}, {"nodes": 1}]),
    has_spares=st.booleans(),
)
def test_a_cluster_is_filled_so_that_no_pool_could_grow(size, tp, has_pools, spare, has_spares):
    assume(not (spare and has_spares))
    keys = {"failures": SPARES} if has_spares else {"spare": spare}
    space = trials(question("azure-conv", DENSE, **keys)).space
    shape, prompts = (ReplicaShape(0, 0, one, 1, 1, "", "bf16", 0, "none") for one in tp)
    sides = (shape, prompts if has_pools else None)

    def taken(replicas, prefill_replicas):
        spares = count_spares(space, sides, replicas, prefill_replicas)
        return (
            (replicas + spares.replicas) * shape.num_ranks
            + (prefill_replicas + spares.prefill_replicas) * prompts.num_ranks * has_pools
            + space.spare_gpus(*sides)
        )

    fills = space.list_fills(size, *sides)
    for replicas, prefill_replicas in fills:
        assert replicas >= 1
        assert (prefill_replicas >= 1) == has_pools
        assert taken(replicas, prefill_replicas) <= size < taken(replicas + 1, prefill_replicas)
        assert not has_pools or taken(replicas, prefill_replicas + 1) > size
    assert sorted(fills, key=lambda one: (one[1], -one[0])) == fills
    assert bool(fills) == (taken(1, int(has_pools)) <= size)


@given(
    seed=st.integers(0, 5),
    level=st.sampled_from([("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)]),
    count=st.sampled_from([50, 900, 2500, 12_000]),
    stay_s=st.floats(0, 60),
    lead=st.integers(0, 40),
)
def test_a_stretch_has_requests_enough_and_lasts_long_enough(seed, level, count, stay_s, lead):
    """Where many short requests come at once, and few long ones at other times."""
    rng = np.random.default_rng(seed)
    is_long = np.arange(count) // 100 % 3 == 0
    arrival_s = np.cumsum(rng.exponential(np.where(is_long, 0.5, 0.05)))
    lengths = np.where(is_long, 5000, 10)
    trace = RequestTrace(arrival_s - arrival_s[0], lengths, np.full(count, 9), "made up")
    traffic = Traffic.measure(trace, lead, stay_s)
    asked = question("azure-conv", DENSE, targets={"tpot_s": {"p50": 0.1, level[0]: 0.2}})
    some = find_stretch(asked, traffic)
    enough = math.ceil(round(100 / (1 - level[1]), 6))
    assert some.num_requests >= min(enough, traffic.num_requests)
    assert some.duration_s >= min(LEAST_STAYS * stay_s, traffic.duration_s) * (1 - 1e-9)
    assert some.num_requests <= traffic.num_requests
    assert some.is_steady or not traffic.is_steady


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpot_s.p50", "tpot_s.p95", "tpot_s.mean", "attainment"])
def test_the_sampling_error_is_that_of_many_samples(target):
    """Of requests that do not wait for each other, drawn again and again."""
    name, _, level = target.partition(".")
    slo = SLO(tpot_s=1.5)
    targets = {"attainment": 0.8} if name == "attainment" else {name: {level: 1.25}}
    targets = validate(Targets, targets, "test")
    rng, count = np.random.default_rng(1), 1500

    def draw():
        arrival_s = np.arange(count) / 7.0
        first_s = arrival_s + 0.1
        finish_s = first_s + 4 * rng.lognormal(0, 0.5, count)
        return pd.DataFrame(
            {
                "arrival_s": arrival_s,
                "first_token_s": first_s,
                "finish_s": finish_s,
                "num_input": 10,
                "num_output": 5,
                "stream_s": 0.0,
                "num_preemptions": 0,
            }
        )

    def measure(requests):
        lengths = np.ones(count, np.int64)
        trace = RequestTrace(requests["arrival_s"].to_numpy(), lengths, lengths, "made up")
        return measure_outcome(requests, Traffic.measure(trace), targets, slo)

    ratios = [measure(draw()).ratios[target] for _ in range(80)]
    found = []
    for _ in range(4):
        requests = draw()
        outcome = measure(requests)
        assert outcome.binding_target == target
        found.append(estimate_sampling_error(requests, outcome, targets, slo))
    assert np.mean(found) == pytest.approx(np.std(ratios), rel=0.25)
