"""Why a combination of model, split and machines is not a candidate."""

from __future__ import annotations

from dataclasses import dataclass, field

ALIKE = "attention data parallelism of a dense model is the same as more replicas"
HEADS = "tensor parallelism does not divide the model's attention heads"
LEAVES_NODE = "tensor parallelism would leave the node"
PART_OF_A_NODE = "a replica over several nodes must fill them"
STAGES = "a pipeline has more stages than the model has layers"
STAGES_BESIDE_DP = "pipelines are tried without attention data parallelism only"
STAGES_OVER_NODES = "pipelines over several nodes are tried with stages that fill them"
STAGES_IN_A_NODE = "pipelines on fast wires are tried where tensor parallelism can go no further"
TOO_LARGE = "a replica would be larger than the limits allow"
MEMORY = "weights, activations and a cache do not fit in memory"
NO_CACHE = "the cache has no room for the longest request"
REFUSES = "its engine refuses prompts that are longer than a step and not cut into chunks"
TOO_SLOW = "misses a latency target even when nothing else runs"
TOO_FEW = "needs more GPUs than the limits allow"
NO_SPARES = "has no room for its spare replicas"
OTHER_PROMPTS = "misses a target with its prompts whole instead of in chunks, or the reverse"
_TELLING = (NO_SPARES, TOO_FEW, TOO_SLOW, REFUSES, NO_CACHE, MEMORY, TOO_LARGE)
"""Reasons by how far a deployment came before it was ruled out: the furthest is what keeps a model
from doing the job."""
_STRUCTURAL = (
    HEADS,
    LEAVES_NODE,
    PART_OF_A_NODE,
    ALIKE,
    STAGES,
    STAGES_BESIDE_DP,
    STAGES_OVER_NODES,
    STAGES_IN_A_NODE,
)
"""Reasons that are of a split, and say nothing of whether the model could do the job with another
one."""


@dataclass
class Ruled:
    """Why combinations were left out: how many for each reason, and one of them."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, example: str, count: int = 1) -> None:
        """Leave some out."""
        if not count:
            return
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.examples.setdefault(reason, example)

    def add(self, other: Ruled) -> None:
        """Leave out what another one has left out."""
        for reason, count in other.counts.items():
            self.leave_out(reason, other.examples[reason], count)

    def telling(self) -> str | None:
        """The reason that says most about why nothing can be run; ``None`` where nothing was left
        out.
        """

        def rank(reason: str) -> tuple[int, int]:
            if reason in _TELLING:
                return _TELLING.index(reason), -self.counts[reason]
            return len(_TELLING) + (
                1 + _STRUCTURAL.index(reason) if reason in _STRUCTURAL else 0
            ), -self.counts[reason]

        return min(self.counts, key=rank, default=None)


def reason_of(message: str) -> str:
    """The kind of an error, without its numbers."""
    if "does not fit" in message:
        return MEMORY
    return message.split("]: ", 1)[-1].split(";", maxsplit=1)[0]
