"""Failures of shards during execution, planned or not, and their record."""

from __future__ import annotations

from typing import NamedTuple

from simulator.config.execution import FaultSpec

FAULT_COLUMNS = {
    "deployment": "name of the deployment",
    "step": "number of the step that was running",
    "ranks": "ranks that were replaced",
    "what": "what happened",
    "recovery_s": "from noticing it until all ranks were ready again",
}
"""Columns of the table of failures, with their descriptions."""


class Fault(NamedTuple):
    """One failure that the run recovered from: ``FAULT_COLUMNS``."""

    deployment: str
    step: int
    ranks: list[int]
    what: str
    recovery_s: float


class ShardsLostError(Exception):
    """Error that some ranks cannot go on."""

    def __init__(
        self, died: set[int], hung: set[int], complaints: list[str], waited_s: float | None
    ) -> None:
        super().__init__(f"died: {sorted(died)}, hung: {sorted(hung)}; {'; '.join(complaints)}")
        self.died = died
        self.hung = hung
        self.complaints = complaints
        """Errors that the other ranks reported."""
        self.waited_s = waited_s
        """Seconds that ranks had to answer each other; ``None`` where they had no limit."""


class RanksLostError(Exception):
    """Error that ranks were lost on purpose, and that the others have noticed it."""

    def __init__(self, lost_s: float, noticed_s: float) -> None:
        super().__init__(f"ranks were lost, which was noticed {noticed_s - lost_s:.3g} s later")
        self.lost_s = lost_s
        """Time of the loss, by :func:`time.perf_counter`."""
        self.noticed_s = noticed_s
        """Time at which all others had noticed it."""


def take_due(
    planned: list[FaultSpec], step: int, attempt: int, *, in_recovery: bool = False
) -> list[FaultSpec]:
    """Take the faults planned for a step's first attempt off the list: each happens once."""
    due = [
        fault
        for fault in planned
        if attempt == 0 and fault.step == step and fault.during_recovery == in_recovery
    ]
    planned[:] = [fault for fault in planned if fault not in due]
    return due
