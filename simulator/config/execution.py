"""Steps that ``moesim execute`` runs of a scenario: two kinds, how often, and what is broken on
purpose.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator

from simulator.base.frozen import Frozen, ListOf, Policy
from simulator.base.kinds import KindByName
from simulator.base.quantities import (
    Duration,
    MachineNumber,
    Rank,
    SequenceCount,
    StepCount,
    StepNumber,
    Steps,
    TokenCount,
    Tokens,
)


class FaultSpec(Frozen):
    """Something that is really killed while a step is running."""

    step: StepNumber
    """Number of the step in which it happens, counted from 0 over all steps of a deployment,
    warm-up included."""
    rank: Rank | None = None
    """Number of the rank whose process is killed; give this or ``node``."""
    node: MachineNumber | None = None
    """Number of the simulated node that is killed with every process on it; give this or
    ``rank``."""
    during_recovery: bool = False
    """Whether it happens while the shards recover from an earlier fault in the step, and not in the
    step."""

    @model_validator(mode="after")
    def _one_victim(self) -> Self:
        if (self.rank is None) == (self.node is None):
            raise ValueError("a fault kills either a rank or a node; give one of them")
        return self


class ExecutionSpec(Frozen):
    """A deployment's steps: prompts from their first token, then decode steps against caches of a
    fixed length.

    Every step stands alone, since its inputs and its cache follow from the seed; so it can be
    repeated anywhere.
    """

    prompts: SequenceCount = 8
    """Sequences of a prompt step, over all ranks; 0 = no prompt steps."""
    prompt_tokens: Tokens = 128
    """Tokens of each prompt."""
    sequences: SequenceCount = 64
    """Sequences of a decode step, over all ranks; 0 = no decode steps."""
    context_tokens: TokenCount = 128
    """Tokens in the cache of each sequence of a decode step."""
    steps: Steps = 12
    """Measured steps of each kind."""
    warm_up: StepCount = 3
    """Steps of each kind before the measured ones, which are not counted."""
    transport: Annotated[Policy, KindByName("runtime.transport")] = {"kind": "process_group"}
    """Way in which shards exchange tokens: ``process_group`` (gloo, NCCL), or ``object_store``
    where no process group can form."""
    timeout_s: Duration = 30.0
    """Seconds after which a rank that keeps the others waiting is taken for hung, and replaced.
    Where steps take long, it gets five times the slowest one so far; in the first one of each kind,
    ten times this."""
    faults: ListOf[FaultSpec] = ()
    """Processes and nodes that are killed on purpose."""

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        if not self.prompts and not self.sequences:
            raise ValueError("prompts and sequences are both 0, so there is nothing to execute")
        return self
