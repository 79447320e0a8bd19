"""Each length distribution reproduces its own formula."""

import math

import numpy as np
import pytest

from simulator.base import plugins
from simulator.base.errors import UserError


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


def test_lengths_stay_between_their_limits():
    num_input, _ = lengths(
        1000,
        kind="lognormal",
        input={"p50": 10, "sigma": 9.0, "min": 5, "max": 20},
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
        ({"p50": -10, "sigma": 1}, "at least 0.5 tokens, got -10"),
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
