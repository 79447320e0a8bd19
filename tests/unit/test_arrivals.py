"""Each arrival process reproduces its own formula."""

import math

import numpy as np
import pytest

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.workload.arrivals._rate import Pauses, Swing
from simulator.workload.renewal import fill_window, weibull_cv, weibull_shape
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
