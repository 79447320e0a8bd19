"""Each arrival process and length distribution reproduces its own formula; and `load_requests`
composes them.
"""

import math
from pathlib import Path

import numpy as np
import pytest

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.workload import SLO, WorkloadSpec
from simulator.workload.arrivals._rate import Pauses, Swing
from simulator.workload.renewal import fill_window, weibull_cv, weibull_shape
from simulator.workload.requests import describe, fano_factor, load_requests
from simulator.workload.traces import RequestTrace
from simulator.workload.traces.table import write_table

POISSON = {"kind": "poisson", "rate_per_s": 5.0}
FIXED = {"kind": "fixed", "num_input": 100, "num_output": 10}


def arrivals(num_requests=200_000, seed=0, **table):
    return plugins.build("arrivals", table, "test").arrival_s(
        num_requests, np.random.default_rng(seed)
    )


def lengths(num_requests=200_000, seed=0, **table):
    return plugins.build("lengths", table, "test").draw(num_requests, np.random.default_rng(seed))


def load(folder=Path("."), seed=0, **table):
    return load_requests(validate(WorkloadSpec, table, "test [workload]"), folder, seed)


def cv(gaps):
    return gaps.std() / gaps.mean()


# Arrivals


@pytest.mark.parametrize(
    ("table", "expected_cv"),
    [
        ({"kind": "poisson"}, 1.0),
        ({"kind": "gamma", "cv": 0.3}, 0.3),
        ({"kind": "gamma", "cv": 3.0}, 3.0),
        ({"kind": "weibull", "cv": 0.5}, 0.5),
        ({"kind": "weibull", "cv": 2.0}, 2.0),
    ],
)
def test_renewal_processes_have_their_rate_and_cv(table, expected_cv):
    gaps = np.diff(arrivals(**table, rate_per_s=4.0), prepend=0)
    assert 1 / gaps.mean() == pytest.approx(4.0, rel=0.03)
    assert cv(gaps) == pytest.approx(expected_cv, rel=0.04)


def test_a_weibull_cv_is_inverted():
    for wanted in (0.05, 0.5, 1.0, 3.0, 20.0):
        assert weibull_cv(weibull_shape(wanted)) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(UserError, match=r"test: cv must lie between .* got 0.002"):
        plugins.build("arrivals", {"kind": "weibull", "rate_per_s": 1.0, "cv": 0.002}, "test")


def test_windows_keep_their_rate_whatever_their_cv():
    for pattern in ("gamma", "weibull"):
        table = {
            "kind": "windowed",
            "windows": [{"duration_s": 600, "rate_per_s": 0.085, "cv": 6.7, "pattern": pattern}],
        }
        times = arrivals(20_000, **table)
        assert len(times) / times[-1] == pytest.approx(0.085, rel=0.01)


def test_windows_follow_each_other_and_repeat():
    windows = [
        {"duration_s": 10, "rate_per_s": 1},
        {"duration_s": 10, "rate_per_s": 0},
        {"duration_s": 10, "rate_per_s": 3},
    ]
    times = arrivals(4000, kind="windowed", windows=windows)
    counts = np.bincount((times // 10).astype(int))[: 3 * 99].reshape(99, 3)
    assert set(counts[:, 0]) <= {9, 10, 11}
    assert set(counts[:, 1]) == {0}
    assert set(counts[:, 2]) <= {29, 30, 31}


def test_one_long_window_has_its_cv():
    times = arrivals(
        90_000,
        kind="windowed",
        windows=[{"duration_s": 10_000, "rate_per_s": 10, "cv": 2.5, "pattern": "weibull"}],
    )
    assert cv(np.diff(times)) == pytest.approx(2.5, rel=0.05)


def test_a_window_of_gaps_that_all_underflow_is_still_filled():
    times = fill_window(5.0, 10.0, "gamma", 1e4, np.random.default_rng(0))
    assert len(times) == 5
    assert ((times >= 0) & (times <= 10)).all()


def test_windows_without_requests_are_refused():
    with pytest.raises(UserError, match="all together must have a request"):
        plugins.build(
            "arrivals",
            {"kind": "windowed", "windows": [{"duration_s": 1, "rate_per_s": 0}]},
            "test",
        )


def test_modulation_without_swings_is_the_renewal_process():
    times = arrivals(kind="modulated", rate_per_s=5.0, span_s=10_000, cv=1.5)
    assert len(times) / times[-1] == pytest.approx(5.0, rel=0.001)
    assert cv(np.diff(times)) == pytest.approx(1.5, rel=0.03)


def test_each_part_of_a_profile_gets_its_share():
    times = arrivals(
        10_000,
        kind="modulated",
        rate_per_s=10,
        span_s=100,
        profile=[1, 3],
        swings=[{"std": 0.5, "time_s": 5}],
    )
    counts = np.bincount((times // 50).astype(int))[:18]
    assert set(counts[::2]) <= {249, 250, 251}
    assert set(counts[1::2]) <= {749, 750, 751}


def test_modulation_has_the_fano_factor_of_its_formula():
    """For an Ornstein-Uhlenbeck rate: cv^2 + rate * s^2 * 2 (tau - tau^2/w (1 - e^(-w/tau))), s
    small (log-normal ~ normal).
    """
    rate, std, tau = 20.0, 0.2, 10.0
    times = arrivals(
        4_000_000,
        kind="modulated",
        rate_per_s=rate,
        span_s=20_000,
        swings=[{"std": std, "time_s": tau}],
    )
    for window in (1.0, 10.0, 60.0):
        expected = 1 + rate * std**2 * 2 * (tau - tau**2 / window * (1 - math.exp(-window / tau)))
        assert fano_factor(times, window) == pytest.approx(expected, rel=0.1)


def test_a_swing_has_its_mean_std_and_memory():
    values = Swing(std=0.5, time_s=2.0).multipliers(400_000, 0.25, np.random.default_rng(0))
    assert values.mean() == pytest.approx(1.0, rel=0.02)
    assert values.std() == pytest.approx(0.5, rel=0.05)
    logs = np.log(values)
    assert np.corrcoef(logs[:-8], logs[8:])[0, 1] == pytest.approx(math.exp(-1), abs=0.03)


def test_pauses_take_their_share_of_the_time():
    active = Pauses(share=0.3, mean_s=5.0).multipliers(1_000_000, 0.1, np.random.default_rng(0))
    assert 1 - active.mean() == pytest.approx(0.3, abs=0.02)
    num_pauses = (np.diff(active) == -1).sum()
    assert (active == 0).sum() * 0.1 / num_pauses == pytest.approx(5.0, rel=0.05)


def test_a_span_that_is_all_silence_still_has_its_requests():
    times = arrivals(
        50, kind="modulated", rate_per_s=1, span_s=10, pauses={"share": 0.999, "mean_s": 1e6}
    )
    assert len(times) == 50


def test_a_span_too_short_for_a_request_is_refused():
    with pytest.raises(
        UserError, match=r"span_s \(1.0\) is too short for a request at rate_per_s \(0.01\)"
    ):
        plugins.build("arrivals", {"kind": "modulated", "rate_per_s": 0.01, "span_s": 1.0}, "test")


def test_modulation_that_needs_too_fine_a_grid_is_refused():
    with pytest.raises(UserError, match="too long for the shortest swing"):
        plugins.build(
            "arrivals",
            {
                "kind": "modulated",
                "rate_per_s": 1,
                "span_s": 1e6,
                "swings": [{"std": 0.1, "time_s": 0.1}],
            },
            "test",
        )


# Lengths


def test_log_normal_lengths_have_their_percentiles():
    num_input, num_output = lengths(
        kind="lognormal",
        input={"p50": 1000, "p90": 4000, "max": 16384},
        output={"p50": 200, "sigma": 0.7},
    )
    assert np.median(num_input) == pytest.approx(1000, rel=0.02)
    assert np.quantile(num_input, 0.9) == pytest.approx(4000, rel=0.03)
    assert num_input.max() == 16384
    assert np.log(num_output).std() == pytest.approx(0.7, rel=0.02)


def test_lengths_stay_between_their_limits():
    num_input, _ = lengths(
        1000,
        kind="lognormal",
        input={"p50": 10, "sigma": 50.0, "min": 5, "max": 20},
        output={"p50": 1, "sigma": 0.1},
    )
    assert set(num_input) == {5, 20} | set(num_input[(num_input > 5) & (num_input < 20)])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"p50": 10}, "give either p90 or sigma"),
        ({"p50": 10, "p90": 20, "sigma": 1}, "give either p90 or sigma"),
        ({"p50": 10, "p90": 10}, r"p90 \(10.0\) must be above p50"),
        ({"p50": 10, "sigma": 1, "min": 9, "max": 8}, r"max \(8\) must be at least min"),
        ({"p50": -10, "sigma": 1}, "above 0, got -10"),
    ],
)
def test_wrong_log_normal_tables_are_refused(table, message):
    with pytest.raises(UserError, match=message):
        plugins.build(
            "lengths",
            {"kind": "lognormal", "input": table, "output": {"p50": 1, "sigma": 1}},
            "test",
        )


@pytest.mark.parametrize(
    ("probabilities", "values", "message"),
    [
        ([0, 1], [1, 2, 3], "must be as many"),
        ([0.1, 1], [1, 2], "must begin with 0 and end with 1"),
        ([0, 0.5, 0.5, 1], [1, 2, 3, 4], "probabilities must rise"),
        ([0, 0.5, 1], [1, 3, 2], "lengths must not fall"),
        ([0, 2], [1, 3], "at most 1"),
    ],
)
def test_wrong_quantile_tables_are_refused(probabilities, values, message):
    side = {"probabilities": probabilities, "lengths": values}
    with pytest.raises(UserError, match=message):
        plugins.build("lengths", {"kind": "empirical", "input": side, "output": side}, "test")


def test_empirical_lengths_have_their_percentiles_and_are_independent():
    side = {"probabilities": [0, 0.5, 0.9, 1], "lengths": [10, 100, 900, 1000]}
    num_input, num_output = lengths(kind="empirical", input=side, output=side)
    for found in (num_input, num_output):
        np.testing.assert_allclose(np.quantile(found, [0.5, 0.9]), [100, 900], rtol=0.03)
        assert found.min() == 10
        assert found.max() == 1000
    assert abs(np.corrcoef(num_input, num_output)[0, 1]) < 0.01


def test_joint_lengths_have_their_rank_correlation():
    side = {"p50": 100, "sigma": 1.0}
    num_input, num_output = lengths(50_000, kind="joint", input=side, output=side, correlation=-0.6)
    ranks = [np.argsort(np.argsort(found)) for found in (num_input, num_output)]
    assert np.corrcoef(*ranks)[0, 1] == pytest.approx(6 / math.pi * math.asin(-0.3), abs=0.02)


@pytest.mark.parametrize("kind", ["empirical", "joint"])
def test_lengths_need_one_source(kind):
    for table in ({}, {"path": "x.csv", "input": {"probabilities": [0, 1], "lengths": [1, 2]}}):
        with pytest.raises(UserError, match=r"give either .* or a path"):
            plugins.build("lengths", {"kind": kind, **table}, "test")


def test_lengths_of_a_file_keep_or_break_its_pairs(tmp_path):
    (tmp_path / "pairs.csv").write_text("num_prefill_tokens,num_decode_tokens\n10,1\n20,2\n30,3\n")
    joint = load(
        tmp_path,
        requests={
            "arrivals": POISSON,
            "lengths": {"kind": "joint", "path": "pairs.csv"},
            "num_requests": 300,
        },
    )
    assert (joint.num_input == 10 * joint.num_output).all()
    broken = load(
        tmp_path,
        requests={
            "arrivals": POISSON,
            "lengths": {"kind": "empirical", "path": "pairs.csv"},
            "num_requests": 300,
        },
    )
    assert set(zip(broken.num_input.tolist(), broken.num_output.tolist(), strict=True)) == {
        (i, o) for i in (10, 20, 30) for o in (1, 2, 3)
    }


# The [workload] table


def test_a_generator_needs_a_limit_and_the_workload_may_say_it():
    table = {"arrivals": POISSON, "lengths": FIXED}
    with pytest.raises(
        UserError, match="say how many requests to generate: add num_requests or duration_s"
    ):
        load(requests=table)
    assert load(requests={**table, "num_requests": 7}).num_requests == 7
    assert load(requests={**table, "num_requests": 7}, num_requests=9).num_requests == 9
    for_a_minute = load(requests={**table, "duration_s": 60.0})
    assert 200 < for_a_minute.num_requests < 400
    assert for_a_minute.arrival_s[-1] < 60


def test_scaling_the_rate_squeezes_the_same_requests():
    spec = {"requests": {"arrivals": POISSON, "lengths": FIXED, "num_requests": 100}}
    slow, fast = load(**spec), load(**spec, rate_scale=2.0)
    np.testing.assert_allclose(fast.arrival_s, slow.arrival_s / 2)
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


def test_a_closed_loop_has_a_number_of_requests_and_no_times():
    table = {"arrivals": {"kind": "closed_loop", "concurrency": 4}, "lengths": FIXED}
    trace = load(requests={**table, "num_requests": 20})
    assert trace.concurrency == 4
    assert not trace.arrival_s.any()
    assert "rate_per_s" not in describe(trace)
    with pytest.raises(UserError, match="closed loop has no arrival times"):
        load(requests=table, duration_s=10.0)
    with pytest.raises(UserError, match="closed loop has no arrival times"):
        load(requests=table, num_requests=10, rate_scale=2.0)


def test_a_file_of_lengths_asks_for_arrivals(tmp_path):
    (tmp_path / "pairs.csv").write_text("num_prefill_tokens,num_decode_tokens\n10,1\n20,2\n")
    with pytest.raises(
        UserError,
        match=r"lists lengths without arrival times; add arrivals = \{ kind = \"poisson\"",
    ):
        load(tmp_path, requests="pairs.csv")
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
    with pytest.raises(
        UserError, match="no request is left; the source ends 3 s in, and start_s is 9"
    ):
        load(tmp_path, requests="t.parquet", start_s=9.0)


def test_a_users_own_generator_file_is_read_from_a_path(tmp_path):
    (tmp_path / "pairs.csv").write_text("num_prefill_tokens,num_decode_tokens\n10,1\n")
    (tmp_path / "mine.toml").write_text(
        'num_requests = 3\narrivals = { kind = "poisson", rate_per_s = 1 }\nlengths = { kind = "joint", path = "pairs.csv" }\n'
    )
    assert load(tmp_path, requests="mine.toml").num_input.tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"requests": "azure-cnv"}, "unknown workload 'azure-cnv'; did you mean 'azure-conv'?"),
        ({"requests": "missing.csv"}, "missing.csv: no such file"),
        ({"requests": {"arrivals": POISSON}}, "missing key 'lengths'"),
        (
            {"requests": {"arrivals": POISSON, "lengths": FIXED, "number": 3}},
            "unknown key 'number'",
        ),
        (
            {"requests": {"arrivals": {"kind": "poison"}, "lengths": FIXED, "num_requests": 1}},
            "did you mean 'poisson'?",
        ),
        ({"requests": "azure-conv", "rate_scale": 0.0}, "rate_scale must be above 0"),
        ({"requests": "azure-conv", "num_requests": 0}, "num_requests must be at least 1"),
        ({"requests": "azure-conv", "num_requests": 10.5}, "num_requests must be a whole number"),
        ({"requests": "azure-conv", "duration_s": "60"}, "duration_s must be a number"),
        (
            {"requests": "azure-conv", "slo": {"ttft": 2}},
            "unknown key 'ttft'; did you mean 'ttft_s'?",
        ),
        ({"requests": "azure-conv", "slo": {"tpot_s": -1}}, "tpot_s must be above 0"),
    ],
)
def test_wrong_workloads_are_refused_in_one_line(table, message, tmp_path):
    with pytest.raises(UserError) as refusal:
        load(tmp_path, **table)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_far_too_many_requests_are_refused(monkeypatch):
    monkeypatch.setattr("simulator.workload.requests._MOST_REQUESTS", 4096)
    with pytest.raises(UserError, match="more than 4096 requests would be generated"):
        load(requests={"arrivals": POISSON, "lengths": FIXED}, duration_s=1e6)


def test_targets_are_optional():
    assert WorkloadSpec(requests="azure-conv").slo == SLO()
    assert validate(WorkloadSpec, {"requests": "x", "slo": {"ttft_s": 2}}, "t").slo.ttft_s == 2


def test_describing_two_requests_leaves_undefined_what_is():
    trace = RequestTrace(np.zeros(2), np.array([5, 5]), np.array([1, 2]), provenance="")
    found = describe(trace)
    assert found["rate_per_s"] is None
    assert found["iat_cv"] is None
    assert found["fano_1s"] is None
    assert found["input_output_correlation"] is None
    assert found["output"] == {"mean": 1.5, "p50": 1.5, "p90": 1.9, "p99": 1.99, "max": 2}
