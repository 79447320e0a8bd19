"""Part of a run's timeline that changes of a deployment need."""

from __future__ import annotations

from typing import Protocol

from simpy.events import Process, ProcessGenerator

from simulator.engine.instants import Instants
from simulator.engine.loop_state import LoopState
from simulator.engine.replica_states import ReplicaStates
from simulator.engine.shared_wires import SharedWires
from simulator.engine.step_looks import StepLooks
from simulator.engine.step_rows import StepLog


class Run(Protocol):
    """Run while its deployment changes."""

    state: LoopState
    instants: Instants
    until_s: float
    """Time after which nothing happens any more."""
    step_looks: StepLooks
    """Looks at pools after some steps."""
    log: StepLog
    """Steps so far."""
    replica_states: ReplicaStates
    wires: SharedWires | None
    """Wires of all replicas, where ranks are simulated."""

    def run_ahead(self, until_s: float) -> None:
        """Let everything happen up to a time, that instant included."""
        ...

    def cut_step(self, place: int, replica: int, at_s: float) -> bool:
        """Cut a replica's step in flight short. Returns whether there was one."""
        ...

    def pause(self, place: int, replica: int, seconds: float) -> ProcessGenerator:
        """Keep a replica from forming steps for a while, behind the step in flight."""
        ...

    def pause_all(self, place: int, seconds: float) -> list[Process]:
        """Pause all replicas of a pool."""
        ...

    def look_soon(self) -> None:
        """Go on at this instant once all has changed."""
        ...

    def scale_soon(self) -> None:
        """Launch and drain replicas at this instant once all has changed, where there are too few
        or too many.
        """
        ...
