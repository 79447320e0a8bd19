"""The words about an execution: they say what was measured whichever way it came out."""

from __future__ import annotations

import dataclasses
import math

import pytest

from simulator.base.formats import TIMES
from tests.report.made_up_executions import MOE, TOTAL, deployment, make


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        (500, f"prompts at 0.5{TIMES} the speed of the dense"),
        (1000, "prompts about as fast as the dense"),
        (3000, f"prompts 3{TIMES} as"),
    ],
)
def test_headline_says_whichever_way_it_came_out(speed, words):
    run = make([deployment("MoE", speed, is_moe=True), TOTAL])
    steady = run.summary.assign(tokens_per_s=[speed, speed / 10, 1000, 100])
    assert words in dataclasses.replace(run, summary=steady).verdict["headline"]


def test_reference_that_differs_or_is_missing_is_said():
    assert any(
        "do not equal" in reason and "5.0e-02" in reason
        for reason in make([TOTAL], difference=0.05).verdict["reasons"]
    )
    assert any(
        "were not compared" in reason
        for reason in make([TOTAL], difference=math.nan).verdict["reasons"]
    )


def test_order_of_the_prediction_is_counted():
    run = make([MOE, TOTAL])
    swapped = run.summary.assign(predicted_tokens_per_s=[1.0, 2.0, 2.0, 1.0])
    said = " ".join(dataclasses.replace(run, summary=swapped).verdict["reasons"])
    assert (
        "Of 2 pairs whose measured speeds differ by more than 5 %, it puts 1 in the right order."
        in said
    )


def test_recovery_is_no_spread(executions):
    run = executions["faults"]
    steps = run.steps.copy()
    is_broken = (
        (steps["deployment"] == "MoE, 2 ranks")
        & (steps["number"] == 4)
        & (steps["source"] == "measured")
    )
    steps.loc[is_broken, "duration_s"] = 30.0
    assert not any(
        reason.startswith("Steps vary")
        for reason in dataclasses.replace(run, steps=steps).verdict["reasons"]
    )
    busy = steps["duration_s"].where(steps["number"] % 2 == 0, 3 * steps["duration_s"])
    noisy = dataclasses.replace(run, steps=steps.assign(duration_s=busy)).verdict["reasons"]
    assert any(reason.startswith("Steps vary: the 90th percentile is ") for reason in noisy)
