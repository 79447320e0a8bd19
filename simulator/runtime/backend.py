"""Interface of backends, which run a plan's steps for real on ranks' shards, and their failures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.config.execution import ExecutionSpec, FaultSpec
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.placement import Placed
from simulator.runtime.job import Job, Step
from simulator.runtime.moving import Received
from simulator.runtime.shard import ShardStep


class Backend(Protocol):
    """Shards of a deployment's ranks."""

    attempt_began_s: float
    """Time at which the last step was begun for the last time, by :func:`time.perf_counter`."""

    @property
    def faults(self) -> Sequence[Fault]:
        """Failures so far that the run recovered from."""
        ...

    def load(self, job: Job) -> list[int]:
        """Build every rank's part of the model. Returns the number of parameters on each."""
        ...

    @property
    def members(self) -> Sequence[int]:
        """Ranks that belong to the group, in the order of their numbers in it, by the number that
        they had when all were there.
        """
        ...

    def step(self, step: Step, lose: Collection[int] = ()) -> list[ShardStep]:
        """Run a step on all members. Returns the measurements and outputs of each.

        Args:
            lose: members that are killed while the step runs, and not replaced.

        Raises:
            LostError: if it fails again and again.
            RanksLostError: once the others have noticed that members were lost on purpose; then
                :meth:`regroup` says who goes on.
        """
        ...

    def regroup(
        self, job: Job, members: Sequence[int], number: int, *, anew: bool = False
    ) -> list[int]:
        """Let some ranks go on together with a job that is for as many. Returns the bytes of
        experts that each loaded into the model that it had.

        Members that are lost are started again, unless :meth:`start` has done so; ranks that are no
        members any more are stopped.

        Args:
            number: of the step that was running, for records of faults.
            anew: whether all ranks are started anew.

        Raises:
            LostError: if ranks fail again and again meanwhile.
        """
        ...

    def start(self, ranks: Collection[int], job: Job) -> None:
        """Start ranks again that were lost, beside the others, and let them load a job's weights;
        they are no members yet.
        """
        ...

    def have_started(self, ranks: Collection[int]) -> bool:
        """Whether ranks that were started are ready to join, without waiting for them."""
        ...

    def place_experts(self, placed: Placed, number: int) -> list[Received]:
        """Move the experts of all ranks to where another placement has them. Returns what each rank
        got from others.

        Args:
            number: of the step before, for records of faults.

        Raises:
            LostError: if ranks fail again and again meanwhile.
        """
        ...

    def apply(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(shard, *arguments)`` on every rank."""
        ...

    def close(self) -> None:
        """Release everything that was started."""
        ...


class Site(Protocol):
    """Machine or cluster where backends are started."""

    @property
    def description(self) -> str:
        """Description for the record of the run."""
        ...

    def start(self, node_R: NDArray[np.int64], execution: ExecutionSpec) -> Backend:
        """Start the shards of ranks on the given nodes, ``[R]``."""
        ...

    def fits(self, backend: Backend, plan: DeploymentPlan) -> bool:
        """Whether shards that were started for another plan can run this one."""
        ...


# Failures of shards, planned or not, and their record.


class Fault(NamedTuple):
    """One failure that the run recovered from."""

    deployment: str
    """Name of the deployment."""
    step: int
    """Number of the step that was running."""
    ranks: list[int]
    """Ranks that were replaced."""
    what: str
    """Description of what happened."""
    recovery_s: float
    """Seconds from noticing it until all ranks were ready again."""


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
