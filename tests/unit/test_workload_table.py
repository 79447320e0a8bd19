"""The [workload] table: `load_requests` composes arrivals, lengths and limits, or says what is
wrong.
"""

from pathlib import Path

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.workload import WorkloadSpec
from simulator.workload.requests import describe, load_requests
from simulator.workload.traces import RequestTrace
from simulator.workload.traces.table import write_table

POISSON = {"kind": "poisson", "rate_per_s": 5.0}
FIXED = {"kind": "fixed", "num_input": 100, "num_output": 10}


def load(folder=Path("."), seed=0, **table):
    return load_requests(validate(WorkloadSpec, table, "test [workload]"), folder, seed)


def test_lengths_of_a_file_keep_or_break_its_pairs(tmp_path):
    (tmp_path / "pairs.csv").write_text("num_prefill_tokens,num_decode_tokens\n10,1\n20,2\n30,3\n")

    def pairs_of(kind):
        lengths = {"kind": kind, "path": "pairs.csv"}
        requests = {"arrivals": POISSON, "lengths": lengths, "num_requests": 300}
        trace = load(tmp_path, requests=requests)
        return set(zip(trace.num_input.tolist(), trace.num_output.tolist(), strict=True))

    assert pairs_of("joint") == {(10, 1), (20, 2), (30, 3)}
    assert pairs_of("empirical") == {(i, o) for i in (10, 20, 30) for o in (1, 2, 3)}


def test_priorities_are_drawn_by_their_shares_and_alike_for_a_seed():
    table = {"requests": {"arrivals": POISSON, "lengths": FIXED, "num_requests": 4000}}
    trace = load(**table, priorities=[0.1, 0, 0.3])
    counts = np.bincount(trace.attributes["priority"], minlength=3)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(3000, abs=6 * (4000 * 0.75 * 0.25) ** 0.5)
    later = load(**table, priorities=[0.1, 0, 0.3], start_s=100.0, num_requests=50)
    gap_s = np.diff(later.arrival_s)[0]  # which only one pair of requests has
    first = int(np.argmin(abs(np.diff(trace.arrival_s) - gap_s)))
    kept = trace.attributes["priority"][first : first + 50]
    assert np.array_equal(later.attributes["priority"], kept), "drawn before requests are cut out"
    again = load(**table, priorities=[0.1, 0, 0.3])
    assert np.array_equal(again.attributes["priority"], trace.attributes["priority"])
    assert np.array_equal(again.arrival_s, load(**table).arrival_s)


def test_a_generator_needs_a_limit_and_the_workload_may_say_it():
    table = {"arrivals": POISSON, "lengths": FIXED}
    assert load(requests={**table, "num_requests": 7}).num_requests == 7
    assert load(requests={**table, "num_requests": 7}, num_requests=9).num_requests == 9
    for_a_minute = load(requests={**table, "duration_s": 60.0})
    assert 200 < for_a_minute.num_requests < 400
    assert for_a_minute.arrival_s[-1] < 60


def test_a_duration_is_of_the_scaled_requests():
    twice = load(requests={"arrivals": POISSON, "lengths": FIXED}, rate_scale=2.0, duration_s=100.0)
    assert twice.num_requests == pytest.approx(1000, rel=0.1)
    assert twice.arrival_s[-1] < 100


def test_the_start_is_in_the_time_of_the_source():
    spec = {"requests": {"arrivals": POISSON, "lengths": FIXED}}
    whole, later = load(**spec, duration_s=100.0), load(**spec, start_s=40.0, duration_s=60.0)
    assert later.num_requests < whole.num_requests
    np.testing.assert_allclose(
        np.diff(later.arrival_s), np.diff(whole.arrival_s)[-(later.num_requests - 1) :]
    )


def test_changing_the_lengths_leaves_the_arrivals_alone():
    first = load(requests={"arrivals": POISSON, "lengths": FIXED, "num_requests": 50})
    second = load(
        requests={"arrivals": POISSON, "lengths": {**FIXED, "num_input": 7}, "num_requests": 50}
    )
    assert first.arrival_s.tobytes() == second.arrival_s.tobytes()


CLOSED = {"arrivals": {"kind": "closed_loop", "concurrency": 4}, "lengths": FIXED}


def test_a_closed_loop_has_a_number_of_requests_and_no_times():
    trace = load(requests={**CLOSED, "num_requests": 20})
    assert trace.concurrency == 4
    assert not trace.arrival_s.any()
    assert "rate_per_s" not in describe(trace)


def test_a_lead_in_leaves_requests_to_judge():
    table = {"arrivals": POISSON, "lengths": FIXED}
    whole = load(requests=table, num_requests=50)
    assert (whole.judge_from_s, whole.num_lead_in) == (0.0, 0)
    assert "num_lead_in" not in describe(whole)
    led = load(requests=table, num_requests=50, judge_from_s=float(whole.arrival_s[10]))
    assert np.array_equal(led.arrival_s, whole.arrival_s)
    assert led.num_lead_in == describe(led)["num_lead_in"] == 10


def test_a_file_of_lengths_asks_for_arrivals(tmp_path):
    (tmp_path / "pairs.csv").write_text("num_prefill_tokens,num_decode_tokens\n10,1\n20,2\n")
    trace = load(tmp_path, requests="pairs.csv", arrivals=POISSON, num_requests=5)
    assert trace.num_requests == 2
    assert trace.has_arrivals
    assert trace.notes == (
        "arrival times generated (poisson)",
        "5 requests were asked for; the source has 2",
    )


def test_limits_cut_prefixes_along_and_number_them_anew(tmp_path):
    trace = RequestTrace(
        arrival_s=np.array([0.0, 1.0, 2.0, 3.0]),
        num_input=np.array([32, 16, 48, 16]),
        num_output=np.array([1, 1, 1, 1]),
        provenance="",
        prefix_block_tokens=16,
        prefix_starts=np.array([0, 2, 3, 6, 7]),
        prefix_ids=np.array([0, 1, 0, 0, 5, 6, 0]),
    )
    write_table(trace, tmp_path / "t.parquet")
    kept = load(tmp_path, requests="t.parquet", start_s=0.5, num_requests=2)
    assert kept.arrival_s.tolist() == [0.0, 1.0]
    assert kept.prefix_starts.tolist() == [0, 1, 4]
    assert kept.prefix_ids.tolist() == [0, 0, 1, 2]


def test_a_users_own_generator_file_is_read_from_a_path(tmp_path):
    (tmp_path / "pairs.csv").write_text("num_prefill_tokens,num_decode_tokens\n10,1\n")
    (tmp_path / "mine.toml").write_text(
        'num_requests = 3\narrivals = { kind = "poisson", rate_per_s = 1 }\nlengths = { kind = '
        '"joint", path = "pairs.csv" }\n'
    )
    assert load(tmp_path, requests="mine.toml").num_input.tolist() == [10, 10, 10]


OPEN = {"arrivals": POISSON, "lengths": FIXED}
NO_TIMES = "closed loop has no arrival times"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"requests": "azure-cnv"}, "unknown workload 'azure-cnv'; did you mean 'azure-conv'?"),
        ({"requests": "azure-conv", "rate_scale": 0.0}, "rate_scale must be at least 1e-06"),
        ({"requests": "azure-conv", "slo": {"ttft": 2}}, "did you mean 'ttft_s'?"),
        ({"requests": OPEN}, "add num_requests or duration_s"),
        ({"requests": OPEN, "duration_s": 1e6}, "more than 4,096 requests would be generated"),
        ({"requests": OPEN, "num_requests": 5, "judge_from_s": -1.0}, "judge_from_s must be at"),
        ({"requests": OPEN, "num_requests": 5, "judge_from_s": 9e3}, "judge_from_s: must be less"),
        ({"requests": CLOSED, "duration_s": 10.0}, NO_TIMES),
        ({"requests": CLOSED, "num_requests": 10, "rate_scale": 2.0}, NO_TIMES),
        ({"requests": CLOSED, "num_requests": 10, "judge_from_s": 1.0}, NO_TIMES),
        ({"requests": OPEN, "num_requests": 5, "priorities": [0, 0]}, "shares must not all be 0"),
        ({"requests": "lengths.csv"}, "lists lengths without arrival times; add arrivals"),
        ({"requests": "times.csv", "start_s": 9.0}, "the source ends 3 s in, and start_s is 9"),
        ({"requests": "times.csv", "priorities": [1]}, "priorities of their own"),
    ],
)
def test_wrong_workloads_are_refused_in_one_line(table, message, tmp_path, monkeypatch):
    monkeypatch.setattr("simulator.workload.requests.MOST_REQUESTS", 4096)
    (tmp_path / "lengths.csv").write_text("num_prefill_tokens,num_decode_tokens\n10,1\n20,2\n")
    rows = "0,9,1,0\n3,9,1,1\n"
    (tmp_path / "times.csv").write_text("arrival_s,num_input,num_output,priority\n" + rows)
    with pytest.raises(UserError) as refusal:
        load(tmp_path, **table)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_describing_two_requests_leaves_undefined_what_is():
    trace = RequestTrace(np.zeros(2), np.array([5, 5]), np.array([1, 2]), provenance="")
    found = describe(trace)
    assert found["rate_per_s"] is None
    assert found["iat_cv"] is None
    assert found["fano_1s"] is None
    assert found["input_output_correlation"] is None
    assert found["output"] == {"mean": 1.5, "p50": 1.5, "p90": 1.9, "p99": 1.99, "max": 2}
