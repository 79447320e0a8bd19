"""What an execution finds, whichever way the measurement came out."""

from __future__ import annotations

import dataclasses
import math

import pytest

from simulator.results.executed import find_executed
from tests.report.made_up_executions import MOE, TOTAL, deployment, make


def find(run, kind, **changes):
    """The facts of what is found of a kind; every sentence is written."""
    found = [*find_executed(dataclasses.replace(run, **changes))]
    assert all(str(one).endswith(".") for one in found)
    return [one.facts for one in found if one.kind == f"executed.{kind}"]


@pytest.mark.parametrize(("speed", "is_equal"), [(500, False), (1000, True), (3000, False)])
def test_headline_says_whichever_way_it_came_out(speed, is_equal):
    run = make([deployment("MoE", speed, is_moe=True), TOTAL])
    steady = run.summary.assign(tokens_per_s=[speed, speed / 10, 1000, 100])
    [headline] = find(run, "headline", summary=steady)
    [compared] = headline["first"].facts["others"]
    assert (compared.facts["ratio"], compared.facts["is_equal"]) == (speed / 1000, is_equal)


@pytest.mark.parametrize("difference", [0.05, math.nan])
def test_reference_that_differs_or_is_missing_is_said(difference):
    [found] = find(make([TOTAL], difference=difference), "reference")
    assert not found["is_equal"]
    assert found["most"] == pytest.approx(difference, nan_ok=True)
    assert bool(found["compared"]) is not math.isnan(difference)


def test_order_of_the_prediction_is_counted():
    run = make([MOE, TOTAL])
    swapped = run.summary.assign(predicted_tokens_per_s=[1.0, 2.0, 2.0, 1.0])
    [found] = find(run, "errors", summary=swapped)
    assert (found["pairs"], found["right"]) == (2, 1)


def test_recovery_is_no_spread(executions):
    run = executions["faults"]
    steps = run.steps.copy()
    is_broken = (
        (steps["deployment"] == "MoE, 2 ranks")
        & (steps["number"] == 4)
        & (steps["source"] == "measured")
    )
    steps.loc[is_broken, "duration_s"] = 30.0
    assert not find(run, "noise", steps=steps)
    busy = steps["duration_s"].where(steps["number"] % 2 == 0, 3 * steps["duration_s"])
    assert find(run, "noise", steps=steps.assign(duration_s=busy))
