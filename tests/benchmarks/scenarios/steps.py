"""What one decode step of DeepSeek-V3 takes where every rank, or every message, is simulated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import simpy

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import finish_step, run_step
from simulator.engine.fabric import FluidWires, MessageWires
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch
from tests.benchmarks.clock import ROOT, cpu_s, time_in_turns
from tests.benchmarks.deployments import DEEPSEEK_EXPERTS, DEEPSEEK_LAYERS, cut_deepseek
from tests.benchmarks.effort import Effort
from tests.benchmarks.rows import Row

ORDER = 20
OPT_IN = False
SEQUENCES, CONTEXT_TOKENS = 32, 1_024
"""Sequences that decode on each rank, and the tokens that each looks back on."""
MESSAGE_LAYERS = 6
"""Layers of DeepSeek-V3 at ``message``, three of them dense; all 61 take half a minute over 32
ranks."""
TARGETS_S = {("rank", 64): 0.04, ("rank", 256): 0.16, ("rank", 1_024): 1.2}
"""CPU seconds that were asked for when the engine got one clock (decision 14)."""


class CountedEnvironment(simpy.Environment):
    """Counts its events."""

    num_events = 0

    def step(self) -> None:
        """Process the next event."""
        self.num_events += 1
        super().step()


def make_batch(num_ranks: int) -> Batch:
    """As many decodes on each rank."""
    row = np.ones(SEQUENCES, dtype=np.int64)
    return Batch(
        tuple(row for _ in range(num_ranks)),
        tuple(row * CONTEXT_TOKENS for _ in range(num_ranks)),
        tuple(row > 0 for _ in range(num_ranks)),
        np.full(num_ranks, SEQUENCES),
    )


def simulate_step(prices: Prices, batch: Batch, fidelity: str) -> int:
    """Price the step's program and run it; the number of its SimPy events."""
    placement, env = prices.placement, CountedEnvironment()
    wires = FluidWires(env) if fidelity == "rank" else MessageWires(env, placement.fabric)
    program = step_operations(prices, batch, 0)
    finish_step(env, run_step(env, wires, program, placement.layout.num_ranks))
    return env.num_events


def prepare_step(plan: DeploymentPlan, fidelity: str) -> Callable[[], int]:
    """A step of the plan, which was run once before."""
    prices, batch = Prices(plan.placement, SEQUENCES), make_batch(plan.placement.layout.num_ranks)
    call = partial(simulate_step, prices, batch, fidelity)
    call()
    return call


def measure_step(step: Callable[[], int], rounds: int) -> tuple[float, int]:
    """CPU seconds of a step, and its events."""
    found: list[int] = []
    timed = partial(cpu_s, lambda: found.append(step()))
    return time_in_turns({"step": timed}, rounds)["step"], found[-1]


def measure_peak(num_ranks: int) -> float:
    """Bytes that a process of its own holds at most, which plans for so many ranks and takes one
    step at ``rank``.
    """
    step = f"steps.prepare_step(cut_deepseek({DEEPSEEK_LAYERS}, {num_ranks}), 'rank')"
    program = f"""
from tests.benchmarks.child import read_peak_bytes
from tests.benchmarks.deployments import cut_deepseek
from tests.benchmarks.scenarios import steps
{step}
print(read_peak_bytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def measure(effort: Effort, tell: Callable[[str], None]) -> Iterator[Row]:
    """CPU seconds and events of each step."""
    for fidelity, num_ranks in effort.steps:
        layers = DEEPSEEK_LAYERS if fidelity == "rank" else MESSAGE_LAYERS
        name = f"{fidelity}, EP {num_ranks}, {layers} layers"
        tell(name)
        step = prepare_step(cut_deepseek(layers, num_ranks), fidelity)
        seconds, num_events = measure_step(step, effort.rounds)
        yield Row(
            "steps",
            name,
            "a step",
            "s",
            seconds,
            target=TARGETS_S.get((fidelity, num_ranks)),
            rounds=effort.rounds,
            note=f"{SEQUENCES} decodes a rank, program and prices included"
            f"{_tell_experts(num_ranks)}",
        )
        yield Row("steps", name, "SimPy events of a step", "event", float(num_events), note="exact")
        if fidelity == "rank":
            peak = measure_peak(num_ranks)
            yield Row("steps", name, "peak memory", "B", peak, note="the plan included")


def _tell_experts(num_ranks: int) -> str:
    more = num_ranks > DEEPSEEK_EXPERTS
    return f"; {num_ranks:,} experts instead of {DEEPSEEK_EXPERTS}" if more else ""
