"""SimPy events of one step, exactly: what the detailed fidelities cost. A change here is a change
of speed, so it is read.
"""

import numpy as np
import pytest

from simulator.engine.by_ranks import run_step
from simulator.engine.fabric import FluidWires, MessageWires
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch
from tests.benchmarks.scenarios.steps import CountedEnvironment


def count(plan, fidelity):
    dp = plan.placement.layout.attention_dp
    rows = tuple(np.ones(8, dtype=np.int64) for _ in range(dp))
    batch = Batch(
        rows, tuple(row * 100 for row in rows), tuple(row > 0 for row in rows), np.full(dp, 8)
    )
    env = CountedEnvironment()
    wires = FluidWires(env) if fidelity == "rank" else MessageWires(env, plan.placement.fabric)
    env.process(
        run_step(
            env,
            wires,
            step_operations(Prices(plan.placement, 8), batch, 0),
            plan.placement.layout.num_ranks,
        )
    )
    while env.peek() < float("inf"):
        env.step()
    return env.num_events


@pytest.mark.parametrize(
    ("name", "split", "fidelity", "expected"),
    [
        ("dense", {"tp": 4}, "rank", 103),
        ("moe", {"attention_dp": 4, "ep": 4}, "rank", 103),
        ("moe", {"attention_dp": 4, "ep": 4}, "message", 4521),
    ],
)
def test_events_of_a_step(tiny, name, split, fidelity, expected):
    assert count(tiny.plan(name, **split), fidelity) == expected
