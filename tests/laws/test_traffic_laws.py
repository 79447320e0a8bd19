"""The traffic that is planned for: long enough to be steady, with requests enough to judge by; a
deployment that falls behind is caught, and headroom is what is just carried.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.capacity import Question, Targets
from simulator.config.workload import SLO
from simulator.planner.conditions import AS_ASKED, WHOLE, Change, Trials
from simulator.planner.explore import ClusterSize
from simulator.planner.headroom import AS_PREDICTED, FURTHEST, Headroom, Slowness, measure_headroom
from simulator.planner.screen import Candidate
from simulator.planner.space import ReplicaShape
from simulator.planner.traffic import LEAST_STAYS, Traffic, lasting, stay, traffic_of
from simulator.planner.trial import Outcome, measure_outcome
from simulator.workload.traces import RequestTrace
from tests.cases import cases
from tests.small_scenario import poisson

HERE = Path()
SPAN_S = 40
"""Between the first and the last arrival of the backlog's law: quarters are whole seconds."""


def question(num_requests=300, rate=30.0, **changes):
    table = {
        "name": "steady",
        "seed": 2,
        "workload": poisson(rate, 512, 128, num_requests),
        "targets": {"ttft_s": {"p90": 0.5}, "tpot_s": {"p90": 0.02}},
        "models": [{"model": "qwen3-8b"}],
        "clusters": [{"cluster": "h100-sxm", "max_gpus": 8}],
    }
    return Question.model_validate({**table, **changes})


CANDIDATE = Candidate(
    ReplicaShape(0, 0, 1, 1, 1, "", "bf16", 0, "none"), 2048, None, 1, 0, 0.0, 0, 0, 0.0, 0.0
)


def recorded(count=400, rate=10.0, seed=0, blocks=0):
    rng = np.random.default_rng(seed)
    starts = np.arange(count + 1) * blocks
    return RequestTrace(
        np.concatenate([[0.0], np.cumsum(rng.exponential(1 / rate, count - 1))]),
        rng.integers(1, 900, count),
        rng.integers(1, 300, count),
        "recorded",
        prefix_block_tokens=16 if blocks else 0,
        prefix_starts=starts if blocks else np.zeros(0, np.int64),
        prefix_ids=np.arange(count * blocks) % 97 if blocks else np.zeros(0, np.int64),
    )


def stays_of(arrival_s, stay_s):
    """Requests of one token, which stay so long."""
    finish_s = arrival_s + stay_s
    table = {"arrival_s": arrival_s, "first_token_s": arrival_s, "finish_s": finish_s}
    return pd.DataFrame(
        table | {"num_input": 1, "num_output": 1, "stream_s": 0.0, "num_preemptions": 0}
    )


def outcome(requests, targets, lead=0, stay_s=0.0):
    """What a table of requests measures, the first ``lead`` of them not judged."""
    lengths = np.ones(len(requests), np.int64)
    trace = RequestTrace(requests["arrival_s"].to_numpy(float), lengths, lengths, "made up")
    traffic = Traffic.measure(trace, lead, stay_s)
    return measure_outcome(requests, traffic, Targets.model_validate(targets), SLO())


def test_generated_requests_are_as_many_as_a_steady_state_takes():
    asked = question()
    longer, before = lasting(asked, HERE)
    traffic = traffic_of(longer, HERE)
    assert before == 300
    assert traffic.is_steady
    assert traffic.stay_s == pytest.approx(0.5 + 0.02 * 128)
    assert traffic.duration_s >= 2 * LEAST_STAYS * traffic.stay_s * 0.9
    assert lasting(longer, HERE) == (longer, None)


def test_enough_is_left_alone():
    asked = question(num_requests=5000)
    assert lasting(asked, HERE) == (asked, None)


def test_a_high_percentile_takes_more_requests():
    counts = [
        lasting(question(targets={"tpot_s": {level: 0.02}}), HERE)[0].workload.num_requests
        for level in ("p90", "p99")
    ]
    assert counts[1] >= 3000 > counts[0]


def test_what_is_planned_does_not_hang_on_how_many_requests_were_asked_for():
    """The size, and within chance the headroom, of 150 requests as of 3,000."""
    found = []
    for count in (150, 3000):
        trials = Trials(question(count).model_dump_json(), str(HERE), None, WHOLE)
        size = trials.find(CANDIDATE).cluster_size
        found.append((size, measure_headroom(trials, CANDIDATE, size)))
    assert found[0][0] == found[1][0]
    assert found[0][1].factor == pytest.approx(found[1][1].factor, rel=0.1)
    assert not found[0][1].is_least
    assert 1 <= found[0][1].factor < FURTHEST


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 300)), min_size=1, max_size=60))
def test_the_sample_is_what_lies_in_the_cache_halfway_in_order(lengths):
    """Brute force: every output token brings its request's context."""
    num_input, num_output = np.array(lengths).T
    traffic = Traffic.measure(
        RequestTrace(np.arange(float(len(lengths))), num_input, num_output, "made up")
    )
    halfway = num_input + num_output // 2
    of_each_token = np.sort(np.repeat(halfway, num_output))
    places = [math.ceil((n + 0.5) / 256 * len(of_each_token)) - 1 for n in range(256)]
    assert traffic.contexts.tolist() == of_each_token[places].tolist()
    in_order = sorted(range(len(lengths)), key=lambda n: halfway[n])
    assert traffic.prompts.tolist() == num_input[in_order].tolist()


def test_a_stretch_is_behind_what_came_before_it():
    traffic = Traffic.measure(recorded(), 0, 2.0).busiest(100)
    assert 80 <= traffic.num_requests <= 200
    assert traffic.lead > 0
    assert traffic.trace.arrival_s[traffic.lead] == pytest.approx(2.0, abs=0.5)


def test_short_records_are_called_so():
    trace = recorded(count=40)
    assert not Traffic.measure(trace, 0, 3.0).is_steady
    assert Traffic.measure(trace, 0, 0.5).is_steady


@pytest.mark.parametrize(("slots", "keeps_up"), [(30, True), (24, True), (18, False), (12, False)])
def test_a_deployment_that_falls_behind_is_caught_whatever_is_asked_for(slots, keeps_up):
    """So many requests at a time, of a second each, 20 of which come every second: only the time
    per token is promised.
    """
    trace = recorded(count=1200, rate=20.0)
    free_s, finish_s = np.zeros(slots), []
    for at in trace.arrival_s:
        place = int(np.argmin(free_s))
        free_s[place] = max(free_s[place], at) + 1.0
        finish_s.append(free_s[place])
    requests = pd.DataFrame(
        {
            "arrival_s": trace.arrival_s,
            "first_token_s": np.array(finish_s) - 0.9,
            "finish_s": finish_s,
            "num_input": trace.num_input,
            "num_output": np.full(1200, 31),
            "stream_s": 0.0,
            "num_preemptions": np.arange(1200) % 4 // 2,
        }
    )
    found = outcome(requests, {"tpot_s": {"p90": 0.05}}, lead=60, stay_s=1.0)
    assert found.ratios["tpot_s.p90"] <= 1
    assert found.met == keeps_up
    assert found.preempted_share == 0.5
    assert found.output_tokens_per_s == pytest.approx(31 * min(slots, 20.0), rel=0.1)


@cases(30)
@given(
    st.lists(st.tuples(st.integers(0, SPAN_S), st.integers(1, 2 * SPAN_S)), min_size=40),
)
def test_the_backlog_is_what_the_last_quarter_serves_more_than_the_second(stays):
    """Brute force: who is there is counted in every second."""
    arrival_s, stay_s = np.array([(0, 1), *stays, (SPAN_S, 1)]).T
    requests = stays_of(arrival_s, stay_s)
    in_second_S = np.arange(SPAN_S)[:, None]
    present_S = ((arrival_s <= in_second_S) & (in_second_S < arrival_s + stay_s)).sum(axis=1)
    _, second, _, last = present_S.reshape(4, -1).mean(axis=1)
    found = outcome(requests, {"ttft_s": {"p90": 1.0}})
    expected = max(0.0, last - second) / (len(arrival_s) / 2)
    assert found.measured["backlog"] == pytest.approx(expected)


@pytest.mark.parametrize(("stay_s", "share"), [(0.0, 0.05), (4.0, 0.05), (20.0, 0.2), (80.0, 0.8)])
@pytest.mark.parametrize(("at_once", "by_chance"), [(1, 1), (9, 3)])
def test_a_backlog_may_grow_with_how_long_requests_stay_and_by_chance(
    stay_s, share, at_once, by_chance
):
    """Two fifths of the stay over the arrivals' time, at least a twentieth; and four times the
    square root of those served at once, of one at least.
    """
    arrival_s = np.repeat(np.arange(SPAN_S + 1.0), at_once)
    lasts_s = np.where((arrival_s >= 0.75 * SPAN_S) & (arrival_s < SPAN_S), 1.0, 0.0)
    if at_once == 1:
        lasts_s /= 4
    requests = stays_of(arrival_s, lasts_s)
    found = outcome(requests, {"ttft_s": {"p90": 1.0}}, stay_s=stay_s)
    half = len(arrival_s) / 2
    grown = (0.25 if at_once == 1 else at_once) / half
    assert found.measured["backlog"] == pytest.approx(grown)
    assert found.ratios["backlog"] == pytest.approx(grown / (share + 4 * by_chance / half))


def test_stays_follow_from_what_is_asked_for():
    trace = replace(recorded(), num_output=np.full(400, 100))
    assert stay(question(), trace) == pytest.approx(2.5)
    assert stay(question(targets={"e2e_s": {"p90": 1.5}}), trace) == 1.5
    assert stay(question(targets={"output_tokens_per_s": 10.0}), trace) == pytest.approx(
        1 + 0.05 * 100
    )


@dataclass
class _Carries:
    """Stands for trials of a deployment that carries so many times the traffic, by trials and, at
    twice the traffic, by a search; requests are enough up to another factor. The time per token
    grows with the traffic and with the seconds of a step, the time to first token does not. Between
    two factors, the gap, targets are missed by chance.
    """

    most: float
    needed: int = 1
    steady_to: float = FURTHEST
    first_token: float = 0.0
    gap: tuple[float, float] = (9.0, 9.0)
    default: Change = AS_ASKED

    def trial(self, candidate, cluster_size, change):
        if self.gap[0] <= change.rate < self.gap[1]:
            return Outcome({"tpot_s.p90": 1.1}, {}, 1.0, 1.0)
        ratios = {"tpot_s.p90": change.rate * change.slower / max(self.most, 1e-9)}
        return Outcome(ratios | {"ttft_s.p90": self.first_token * change.later}, {}, 1.0, 1.0)

    def find(self, candidate, change):
        return SimpleNamespace(size=self.needed)

    def read_traffic(self, change):
        return SimpleNamespace(is_steady=change.rate <= self.steady_to)


ONE = ClusterSize(1, 1)


def headroom_of(*given, size=ONE, slowness=AS_PREDICTED, **keys):
    return measure_headroom(_Carries(*given, **keys), CANDIDATE, size, slowness)


@pytest.mark.parametrize("most", [0.14, 0.5, 0.99, 1.0, 1.3, 7.9])
def test_headroom_is_what_is_just_carried(most):
    found = headroom_of(most)
    assert most / 1.02 <= found.factor <= most
    assert not found.is_least


@given(most=st.floats(0.126, 7.9), near=st.floats(0.125, 8.0))
def test_headroom_is_found_coarsely_wherever_it_is_looked_for(most, near):
    found = measure_headroom(_Carries(most), CANDIDATE, ONE, near=near)
    assert most / 1.04 <= found.factor <= most


def test_headroom_ends_at_eight_times_and_at_an_eighth():
    assert headroom_of(8.0) == headroom_of(100.0) == Headroom(8.0, is_least=True)
    assert headroom_of(0.05) == headroom_of(0.0) == Headroom(0.0)
    assert headroom_of(8.0, size=None) == Headroom(0.0)


def test_headroom_ends_where_requests_are_over_before_a_steady_state_shows():
    assert headroom_of(8.0, steady_to=3.0) == Headroom(2.5, is_least=True)
    assert headroom_of(1.7, steady_to=3.0).factor == pytest.approx(1.7, rel=0.02)
    # Where they are too few as asked, they are taken for what they are.
    assert headroom_of(8.0, steady_to=0.5) == Headroom(8.0, is_least=True)


def test_twice_the_traffic_is_not_carried_by_what_the_search_finds_too_small_for_it():
    assert headroom_of(8.0, needed=2).factor < 2
    assert headroom_of(8.0, needed=None).factor < 2


def test_headroom_at_an_end_of_the_bands_is_that_of_both_latencies():
    assert headroom_of(3.0, slowness=Slowness(1.5)).factor == pytest.approx(2.0, rel=0.02)
    slow_first = Slowness(1.5, 1.3)
    assert headroom_of(3.0, first_token=0.7, slowness=slow_first).factor > 1.9
    assert headroom_of(3.0, first_token=0.8, slowness=slow_first) == Headroom(0.0)


@pytest.mark.parametrize("gap", [(1.465, 1.4811), (1.46, 1.475), (1.44, 1.4805)])
def test_what_is_carried_by_chance_only_does_not_count(gap):
    found = headroom_of(1.49, gap=gap).factor
    assert gap[0] / 1.03 < found < gap[0]
