"""Steps that a run took at a fidelity that knows each rank's batch, so that they can be shown."""

from __future__ import annotations

from typing import NamedTuple

from simulator.base.thinned import Thinned
from simulator.step.program import Batch

_MOST_KEPT = 256
"""Steps of a kind that are kept, spread evenly over the run; a batch of 32 ranks takes some 50
kB."""


class TakenStep(NamedTuple):
    """One step of one replica."""

    replica: int
    """Among the replicas of its pool."""
    number: int
    """How many steps the replica took before."""
    start_s: float
    duration_s: float
    batches: tuple[Batch, ...]
    """The batch of each lane of a pipeline that had something to compute; else one."""
    offsets: tuple[int, ...]
    """Where in the pool of expert choices the tokens of each batch begin."""


class TakenSteps:
    """Steps of a run by the phase that they are shown as."""

    def __init__(self) -> None:
        self._by_phase: dict[str, Thinned[TakenStep]] = {
            phase: Thinned(_MOST_KEPT) for phase in ("decode", "prefill")
        }

    def add(self, step: TakenStep) -> None:
        """Keep a step for a while."""
        has_prompts = any(not flags.all() for batch in step.batches for flags in batch.is_decode)
        self._by_phase["prefill" if has_prompts else "decode"].add(step)

    def nearest(self, phase: str, duration_s: float) -> TakenStep:
        """The kept step whose duration is nearest; the earliest of equals.

        Raises:
            ValueError: if the run took no step of the phase.
        """
        kept = self._by_phase[phase].items
        return min(kept, key=lambda step: abs(step.duration_s - duration_s))
