"""Sample of the steps that a run took at a fidelity that knows each rank's batch, kept
to be shown.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.base.thinned import Thinned
from simulator.step.prices import Prices
from simulator.step.program import Batch

_MOST_KEPT = 256
"""Most steps of a kind that are kept, spread evenly over the run; a batch of 32 ranks takes some 50
kB."""


class TakenStep(NamedTuple):
    """One step of one replica."""

    replica: int
    """Number of the replica in its pool."""
    number: int
    """Steps that the replica took before."""
    start_s: float
    duration_s: float
    batches: tuple[Batch, ...]
    """Batch of each lane of a pipeline that had something to compute; otherwise one."""
    prices: Prices
    """Prices of its replica then."""
    offsets: tuple[int, ...]
    """Index of each batch's first token in the pool of expert choices."""


class TakenSteps:
    """Sample of a run's steps, by the phase that they are shown as."""

    def __init__(self) -> None:
        self._by_phase: dict[str, Thinned[TakenStep]] = {
            phase: Thinned(_MOST_KEPT) for phase in ("decode", "prefill")
        }

    def add(self, step: TakenStep) -> None:
        """Add a step to the sample."""
        has_prompts = any(not flags.all() for batch in step.batches for flags in batch.is_decode)
        self._by_phase["prefill" if has_prompts else "decode"].add(step)

    def nearest(self, phase: str, duration_s: float) -> TakenStep | None:
        """Find the kept step whose duration is nearest, the earliest of equals; ``None`` where none
        of the phase was kept.
        """
        kept = self._by_phase[phase].items
        return min(kept, key=lambda step: abs(step.duration_s - duration_s), default=None)
