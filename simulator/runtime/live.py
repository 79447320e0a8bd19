"""A deployment that runs for real and changes while it does, as the same policies have it that
change a simulated one.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

from simulator.deployment.plan import DeploymentPlan
from simulator.runtime.backend import Backend
from simulator.runtime.job import Job, Step
from simulator.runtime.live_experts import LiveExperts
from simulator.runtime.shard import ShardStep


class LiveStep(NamedTuple):
    """Step that was run."""

    step: Step
    shards: list[ShardStep]
    seconds: float
    """Seconds from telling the ranks to start until all were done, without recoveries."""
    plan: DeploymentPlan
    """Plan as it was in force."""
    job: Job
    """Job as the ranks had it."""


class LiveDeployment:
    """Deployment on a backend's shards, with a clock of its own.

    The clock stands for the seconds since the first arrival, which policies know: it goes on during
    counted steps and while these wait for changes, and not while the driver does something else.
    Changes happen between steps, in the first gap after their time.
    """

    def __init__(self, plan: DeploymentPlan, job: Job, backend: Backend) -> None:
        """Begin at 0 s with nothing lost.

        Args:
            backend: has loaded the job.
        """
        self.experts = LiveExperts(plan, backend)
        self.clock_s = 0.0
        self._backend, self._job = backend, job
        self._unchecked: set[str] = set()
        """Kinds of step that were not compared since the latest change."""

    def run(self, step: Step, *, counts: bool) -> LiveStep:
        """Make the changes that are due, and run a step; the first of each kind behind a change
        keeps its output.

        Args:
            counts: whether the step belongs to the deployment's time; steps that warm up do not.

        Raises:
            LostError: if it fails again and again.
        """
        if counts:
            self._rebalance(step.number)
        if step.kind in self._unchecked:
            step = replace(step, keeps_output=True)
            self._unchecked.discard(step.kind)
        shards = self._backend.step(step)
        seconds = time.perf_counter() - self._backend.attempt_began_s
        if counts:
            self.clock_s += seconds
            self.experts.count(shards)
        return LiveStep(step, shards, seconds, self.experts.plan, self._job)

    def _rebalance(self, number: int) -> None:
        seconds = self.experts.rebalance(self.clock_s, number)
        if seconds is None:
            return
        self.clock_s += seconds
        experts = self.experts.plan.placement.experts
        assert experts is not None
        self._job = self._job.place_experts(experts.placed)
        self._unchecked = {"prompt", "decode"}
