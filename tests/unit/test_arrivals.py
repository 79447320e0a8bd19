"""Each arrival process and length distribution reproduces its own formula."""

import math

import numpy as np
import pytest

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.workload.arrivals._rate import Pauses, Swing
from simulator.workload.renewal import fill_window
from simulator.workload.requests import fano_factor


def arrivals(num_requests=200_000, seed=0, **table):
    return plugins.build("arrivals", table, "test").arrival_s(
        num_requests, np.random.default_rng(seed)
    )


def cv(gaps):
    return gaps.std() / gaps.mean()


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


def test_a_window_of_gaps_that_all_underflow_is_still_filled():
    times = fill_window(5.0, 10.0, "gamma", 1e4, np.random.default_rng(0))
    assert len(times) == 5
    assert ((times >= 0) & (times <= 10)).all()


RATE = {"kind": "modulated", "rate_per_s": 1}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"kind": "windowed", "windows": [{"duration_s": 1, "rate_per_s": 0}]},
            "must have a request",
        ),
        ({**RATE, "rate_per_s": 0.01, "span_s": 1.0}, r"span_s \(1.0\) is too short for a request"),
        ({**RATE, "span_s": 1e6, "swings": [{"std": 0.1, "time_s": 0.1}]}, "the shortest swing"),
        ({"kind": "weibull", "rate_per_s": 1.0, "cv": 0.002}, "cv must lie between .* got 0.002"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, said):
    with pytest.raises(UserError, match=f"test: .*{said}"):
        plugins.build("arrivals", table, "test")


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


def lengths(num_requests=200_000, seed=0, **table):
    return plugins.build("lengths", table, "test").draw(num_requests, np.random.default_rng(seed))


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


ONE = {"p50": 1, "sigma": 1}
LAST = {"probabilities": [0, 1], "lengths": [1, 2]}
TWICE = {"probabilities": [0, 0.5, 0.5, 1], "lengths": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("kind", "table", "message"),
    [
        ("lognormal", {"input": {"p50": 10}}, "give either p90 or sigma"),
        ("lognormal", {"input": {"p50": 10, "p90": 20, "sigma": 1}}, "give either p90 or sigma"),
        ("lognormal", {"input": {"p50": 10, "p90": 10}}, r"p90 \(10.0\) must be above p50"),
        ("lognormal", {"input": {**ONE, "min": 9, "max": 8}}, r"max \(8\) must be at least min"),
        ("empirical", {"input": {**LAST, "lengths": [1, 2, 3]}}, "must be as many"),
        ("empirical", {"input": {**LAST, "probabilities": [0.1, 1]}}, "must begin with 0"),
        ("empirical", {"input": TWICE}, "probabilities must rise"),
        *((kind, {"input": None, "output": None}, "or a path") for kind in ("empirical", "joint")),
        *((kind, {"path": "x.csv", "input": LAST}, "or a path") for kind in ("empirical", "joint")),
    ],
)
def test_wrong_tables_of_lengths_are_refused(kind, table, message):
    sides = {"output": ONE if kind == "lognormal" else LAST, **table}
    given = {name: value for name, value in sides.items() if value is not None}
    with pytest.raises(UserError, match=message):
        plugins.build("lengths", {"kind": kind, **given}, "test")


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
