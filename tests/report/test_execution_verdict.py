"""The words about an execution: they say what was measured whichever way it came out."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from simulator.base.formats import TIMES
from tests.report.made_up_executions import ACTIVE, CASES, MACHINE, MOE, TOTAL, deployment, make


def test_headline_compares_a_mixture_with_its_twins(executions):
    found = executions["all"].verdict
    assert re.fullmatch(
        rf"On this machine \({MACHINE}\) the MoE computes prompts 2\.\d+{TIMES} as fast as the dense model with as many parameters, "
        rf"and at 0\.\d+{TIMES} the speed of the one with as many active ones\.",
        found["headline"],
    )
    said = " ".join(found["reasons"])
    assert re.search(
        rf"The MoE decodes 2\.\d+{TIMES} as fast as the dense model with as many parameters", said
    )
    assert re.search(
        rf"2\.4{TIMES} and 0\.5{TIMES} for prompts, and 2\.4{TIMES} and 0\.5{TIMES} for decode",
        said,
    )
    assert re.search(
        rf"pruned from: Dense, half: prompts \d\.\d+{TIMES} and decode \d\.\d+{TIMES}\.", said
    )
    assert re.search(
        r"off by (19|20|21) % \(median of the absolute errors over 4 deployments and 2 kinds of step\)",
        said,
    )
    assert "equal the one-process reference: no hidden value differs by more than 3.0e-06" in said


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


def test_headline_without_a_mixture_or_twins():
    assert re.search(
        r"Dense, total decodes at [\d.]+ tokens per second\.", CASES["one"]().verdict["headline"]
    )
    assert re.search(
        rf"Dense, active computes prompts fastest of 2 deployments, at [\d,]+ tokens per second: .*{TIMES} as fast as Dense, total",
        CASES["no mixture"]().verdict["headline"],
    )
    other = deployment("Other", 1000, total=9_000_000)
    assert "as fast as Other (9M parameters)" in make([MOE, other]).verdict["headline"]
    assert (
        "the dense model with as many active parameters" in make([MOE, ACTIVE]).verdict["headline"]
    )
    twins = make([MOE, TOTAL, deployment("Dense, 1 rank", 900, num_gpus=1)]).verdict["headline"]
    assert "the MoE (on 2 ranks)" in twins
    assert "Dense, 1 rank (26M parameters) on 1 rank" in twins


def test_several_mixtures_are_told_apart():
    found = make([MOE, deployment("MoE, 4 ranks", 500, is_moe=True), TOTAL]).verdict
    assert ") MoE, 2 ranks computes prompts" in found["headline"]
    assert any(
        reason.startswith("MoE, 4 ranks computes prompts at 0.") for reason in found["reasons"]
    )


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


def test_what_changed_is_told_measured_beside_predicted(executions):
    said = executions["changes"].verdict["reasons"]
    assert (
        "Of MoE, 2 ranks, rank 1 is lost at 500 ms in step 4, which is noticed after 250 ms "
        "(predicted: 5 s); the 3 that are left go on 125 ms (predicted: 1.2 s) later, with the "
        "experts that they have copies of and 4.2 MB of experts loaded on one; rank 1 joins again "
        "at 2 s, for which steps wait 100 ms (predicted: 1.2 s). Every step in flight was run again."
    ) in said
    (told,) = (text for text in said if text.startswith("Experts of MoE, 2 ranks move once"))
    assert "12 copies (4.2 MB in each replica) in 10 ms (predicted: 20 ms)" in told


def test_failures_that_never_came_to_pass_are_told():
    late = deployment("late", 1000, failures="kill (at_s 200)", changes=[], clock_s=0.5)
    (told,) = (text for text in make([late]).verdict["reasons"] if "No GPU" in text)
    assert told == (
        "No GPU of late has failed: its measured steps, with what came between them, took 500 ms."
    )
