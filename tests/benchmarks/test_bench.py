"""Parts of the benchmark; how long anything takes is asserted nowhere."""

import dataclasses

import numpy as np
import pytest

from tests.benchmarks import clock
from tests.benchmarks.collect import choose, list_scenarios
from tests.benchmarks.deployments import DENSE, Case, cut_deepseek, make_case
from tests.benchmarks.effort import FULL, QUICK
from tests.benchmarks.rows import Row, fit_exponent
from tests.benchmarks.scenarios import steps, whole_run


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 1.37, 2.0])
def test_the_exponent_of_a_power_law(exponent):
    sizes = [8, 16, 32, 64, 128]
    assert fit_exponent(sizes, [0.03 * n**exponent for n in sizes]) == pytest.approx(exponent)


@pytest.mark.parametrize(
    ("changes", "is_met"),
    [
        ({}, None),
        ({"target": 10.0}, True),
        ({"target": 9.9}, False),
        ({"target": 10.1, "better": "higher"}, False),
        ({"target": 10.0, "better": "higher"}, True),
    ],
)
def test_a_target_is_a_bound(changes, is_met):
    row = dataclasses.replace(Row("serving", "a", "b", "s", 10.0), **changes)
    assert row.is_met is is_met


def test_calls_are_asked_in_turns_and_the_median_counts():
    asked, answers = [], {"a": iter([5.0, 1.0, 3.0]), "b": iter([2.0, 2.0, 9.0])}

    def call(name):
        asked.append(name)
        return next(answers[name])

    found = clock.time_in_turns({name: lambda name=name: call(name) for name in answers}, 3)
    assert found == {"a": 3.0, "b": 2.0}
    assert asked == ["a", "b"] * 3


@pytest.mark.parametrize("effort", [FULL, QUICK], ids=lambda effort: effort.name)
def test_efforts_can_be_measured(effort):
    assert effort.rounds % 2 == 1
    for sizes in (effort.requests, effort.replicas, effort.ranks, effort.layers):
        assert len(set(sizes)) >= 2
        assert list(sizes) == sorted(sizes)
    assert effort.run_requests[0] < effort.run_requests[1]


def test_what_is_named_is_run_and_nothing_else():
    every = list_scenarios()
    opt_in = {name for name, scenario in every.items() if scenario.OPT_IN}
    assert opt_in == {"long_run", "plan"}
    assert set(choose(None)) == set(every) - opt_in
    assert list(choose(["plan", "serving"])) == ["serving", "plan"]


def test_memory_of_a_request_is_what_more_requests_take(monkeypatch):
    effort = dataclasses.replace(QUICK, run_requests=(1_000, 3_000))
    spent = {1_000: clock.Spent(2.0, 2.0, 300_000), 3_000: clock.Spent(3.0, 3.0, 500_000)}
    monkeypatch.setattr(whole_run, "run_scenario", spent.get)
    found = {row.measure: row.value for row in whole_run.measure(effort, lambda _: None)}
    assert found["memory of a request"] == 100.0
    assert found["CPU time of a request"] == pytest.approx(0.5e-3)


def test_cut_models_keep_their_dense_layers():
    plan = cut_deepseek(5, 16)
    ffns = [ffn for _, ffn in plan.placement.model.layer_names]
    assert ffns == ["dense"] * 3 + ["moe"] * 2


def test_a_shipped_workload_is_cut_to_its_first_requests():
    case = Case("", DENSE, 50, workload="azure-conv")
    _, few = make_case(case)
    _, more = make_case(dataclasses.replace(case, num_requests=80))
    assert few.num_requests == 50
    np.testing.assert_array_equal(few.num_input, more.num_input[:50])


@pytest.mark.parametrize(
    ("fidelity", "num_layers", "num_ranks", "expected"),
    [("rank", 5, 8, 67), ("rank", 5, 16, 83), ("rank", 61, 64, 1_411), ("message", 4, 8, 8_371)],
)
def test_events_of_the_steps_that_are_timed(fidelity, num_layers, num_ranks, expected):
    step = steps.prepare_step(cut_deepseek(num_layers, num_ranks), fidelity)
    assert (step(), step()) == (expected, expected)
