"""Ranks as threads of one process: the same steps, record and outputs as on Ray, without Ray."""

import time

import numpy as np
import pytest

from simulator.base.errors import LostError, UserError
from simulator.commands.execute import execute as execute_scenario
from simulator.results.executed import STEP_COLUMNS, SUMMARY_COLUMNS, find_executed
from simulator.runtime.in_process import InProcessBackend
from simulator.runtime.job import Step
from simulator.runtime.load import Use, others_share
from simulator.runtime.shard import Shard
from simulator.scenario.jobs import load_scenario

MORE = ["execution.steps=3", "execution.warm_up=1", "execution.sequences=8", "execution.prompts=2"]


@pytest.fixture
def scenario():
    def load(*overrides):
        loaded = load_scenario("moe_vs_dense_local", [*MORE, *overrides])
        return loaded, [deployment.name for deployment in loaded.deployments]

    return load


def test_threads_execute_a_scenario_and_equal_one_process(scenario):
    loaded, names = scenario()
    ticks = []
    found = execute_scenario(
        loaded,
        backend="in_process",
        names=names[:2],
        progress=lambda name, done, total, best="": ticks.append((name, done, total)),
    )
    assert list(found.steps.columns) == list(STEP_COLUMNS)
    assert list(found.summary.columns) == list(SUMMARY_COLUMNS)
    assert (found.summary["largest_difference"] < 1e-5).all()
    measured = found.steps[found.steps["source"] == "measured"]
    assert measured.groupby(["deployment", "kind"]).size().tolist() == [3] * 4
    assert (measured["duration_s"] > 0).all()
    assert found.faults.empty
    assert found.run["nodes"] == "threads of one process"
    assert "ray" not in found.run["versions"]
    assert (names[0], 8, 8) in ticks


def test_threads_refuse_faults_and_say_what_would_do(scenario):
    loaded, _ = scenario("execution.faults=[{ step = 1, rank = 0 }]")
    with pytest.raises(UserError, match="leave them out, or use --backend ray"):
        execute_scenario(loaded, backend="in_process")


KILL = 'deployments.*.failures=[{ kind = "kill", at_s = 0.0, gpu = 0, restart_s = 0.0 }]'

RESTART = 'deployments.*.recovery={ kind = "restart", startup_s = 2.0 }'


def test_a_failure_of_a_scenario_is_executed_and_told_with_its_prediction(scenario):
    loaded, names = scenario(KILL, RESTART)
    found = execute_scenario(loaded, backend="in_process", names=names[:2])
    assert (found.summary["largest_difference"] < 1e-5).all()
    for name in names[:2]:
        changes = found.run["deployments"][name]["changes"]
        assert [change["kind"] for change in changes] == ["hangs", "stops", "starts"]
        assert {change["step"] for change in changes} == {1}  # the first that is measured
        assert changes[-1]["predicted_s"] == 2.0
    assert found.faults.empty


def test_a_failure_that_never_came_to_pass_is_told(scenario):
    loaded, names = scenario(KILL.replace("0.0, gpu", "1e6, gpu"))
    found = execute_scenario(loaded, backend="in_process", names=names[:1])
    assert "executed.no_failure" in {one.kind for one in find_executed(found)}


def test_threads_that_are_not_waited_for_say_what_to_raise(scenario, monkeypatch):
    """One of them comes late; else all may come within a nanosecond's patience."""
    step = Shard.step

    def come_late(shard, *given):
        time.sleep(0.2 if shard.rank == 0 else 0.0)
        return step(shard, *given)

    monkeypatch.setattr(Shard, "step", come_late)
    loaded, names = scenario("execution.timeout_s=1e-9")
    with pytest.raises(LostError, match=f"while '{names[0]}' ran: .*raise execution.timeout_s"):
        execute_scenario(loaded, backend="in_process", names=names[:1])


def test_a_thread_that_fails_is_named_and_not_waited_for():
    backend = InProcessBackend(2, timeout_s=1e6)  # the other would outlast the test

    class Broken:
        def step(self, step, timeout_s):
            raise ZeroDivisionError

    class Waits:
        def step(self, step, timeout_s):
            one.transport.barrier()

    one = backend.shards[0]
    backend.shards = [Waits(), Broken()]
    try:
        with pytest.raises(ZeroDivisionError):
            backend.step(Step(0, 2, 1, 4, 0))
    finally:
        backend.shards = [one]
        backend.close()


def test_threads_of_one_process_are_counted_once_in_what_others_use():
    before, after = Use("here", 1, 2, 0.0, 0.0, 0.0), Use("here", 1, 2, 3.0, 2.0, 10.0)
    alone = others_share([before], [after])
    assert alone == pytest.approx((3.0 - 2.0) / (2 * 10.0))
    assert others_share([before] * 4, [after] * 4) == alone
    assert np.isnan(others_share([before], [before]))
