"""GPUs and wires that become slower during a run, and as fast as usual again."""

from __future__ import annotations

from collections.abc import Sequence

from simpy.events import ProcessGenerator

from simulator.engine.instants import CHANGE
from simulator.engine.run import Run


def degrade(run: Run, times: Sequence[float]) -> ProcessGenerator:
    """Make GPUs and wires as fast as they are from some times on, which are in order."""
    for at_s in times:
        yield run.instants.wait_until(at_s, CHANGE)
        if at_s > run.until_s:
            return
        run.run_ahead(at_s)
        run.replica_states.degrade_all(at_s)
