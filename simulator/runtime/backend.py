"""Interface of backends, which run a plan's steps for real on the ranks' shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simulator.config.execution import ExecutionSpec
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.placement import Placed
from simulator.runtime.faults import Fault
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

    def step(self, step: Step) -> list[ShardStep]:
        """Run a step on all ranks. Returns the measurements and outputs of each.

        Raises:
            LostError: if it fails again and again.
        """
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

    def start(self, plan: DeploymentPlan, execution: ExecutionSpec) -> Backend:
        """Start the shards of a plan's ranks."""
        ...

    def fits(self, backend: Backend, plan: DeploymentPlan) -> bool:
        """Whether shards that were started for another plan can run this one."""
        ...
