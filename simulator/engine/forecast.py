"""Predicted times of single steps, rank by rank, to compare with a real execution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simpy

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.fabric import FluidWires
from simulator.engine.rank import StepTimes, finish_step, run_step
from simulator.step.operations import step_operations
from simulator.step.prices import Prices
from simulator.step.program import Batch


class EvenStep(NamedTuple):
    """Step over sequences that are alike, spread over the data-parallel ranks."""

    sequences_d: tuple[int, ...]
    """Sequences of each data-parallel rank."""
    new_tokens: int
    """New tokens of each sequence."""
    context_tokens: int
    """Tokens of each sequence in the cache."""
    offset: int
    """Index of the step's first token in the plan's pool of expert choices."""

    def batch(self) -> Batch:
        """Batch of the step, as the simulator's engine forms it."""
        is_decode = self.new_tokens == 1 and self.context_tokens > 0
        return Batch(
            new_tokens=tuple(
                np.full(number, self.new_tokens, dtype=np.int64) for number in self.sequences_d
            ),
            context_tokens=tuple(
                np.full(number, self.context_tokens, dtype=np.int64) for number in self.sequences_d
            ),
            is_decode=tuple(np.full(number, is_decode) for number in self.sequences_d),
            num_logits=np.array(self.sequences_d, dtype=np.int64),
        )


def forecast(
    plan: DeploymentPlan, steps: Sequence[EvenStep], *, keep_spans: bool = False
) -> Iterator[StepTimes]:
    """Simulate each step on its own at the ``rank`` fidelity."""
    if not steps:
        return
    prices = Prices(plan.placement, max(max(step.sequences_d) * step.new_tokens for step in steps))
    num_ranks = plan.placement.layout.num_ranks
    for step in steps:
        env = simpy.Environment()
        program = step_operations(prices, step.batch(), step.offset)
        yield finish_step(
            env,
            run_step(
                env,
                FluidWires(env),
                program,
                num_ranks,
                shared_cores=plan.placement.calibration.shared_cores,
                keep_spans=keep_spans,
            ),
        )
