"""Steps that ``moesim execute`` runs of each deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.config.execution import ExecutionSpec
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.probe import make_even_batch
from simulator.step.program import Batch

if TYPE_CHECKING:  # it imports torch
    from simulator.runtime.job import Step

_STRIDE = 997
"""Places in the pool of expert choices between two steps' beginnings."""


def list_steps(execution: ExecutionSpec, *, goes_on: bool = False) -> list[tuple[str, Step, bool]]:
    """Kind, step, and whether it counts; the first of each kind is checked against the
    reference.

    Args:
        goes_on: whether each step has the next tokens of the sequences of the step before, instead
            of others.
    """
    from simulator.runtime.job import Step

    kinds = []
    if execution.prompts:
        kinds.append(("prompt", execution.prompts, execution.prompt_tokens, 0))
    if execution.sequences:
        kinds.append(("decode", execution.sequences, 1, execution.context_tokens))
    found: list[tuple[str, Step, bool]] = []
    for kind, sequences, new, context in kinds:
        for i in range(execution.warm_up + execution.steps):
            number = len(found)
            found.append(
                (
                    kind,
                    Step(
                        number,
                        sequences,
                        new,
                        context,
                        (1 if goes_on else _STRIDE) * number,
                        i == 0,
                    ),
                    i >= execution.warm_up,
                )
            )
    return found


def spread_evenly(plan: DeploymentPlan, step: Step) -> tuple[Batch, int]:
    """The step as the simulator has it, its sequences spread over the data-parallel ranks, and its
    offset.
    """
    from simulator.runtime.layers.part import Part

    dp = plan.placement.layout.attention_dp
    sequences_d = [Part(d, dp).num(step.num_sequences) for d in range(dp)]
    return make_even_batch(sequences_d, step.new_tokens, step.context_tokens), step.offset
