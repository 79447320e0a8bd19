"""A deployment that runs for real and changes while it does, as the same policies have it that
change a simulated one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from simulator.deployment.plan import DeploymentPlan
from simulator.runtime.backend import Backend
from simulator.runtime.faults import RanksLostError
from simulator.runtime.job import Job, Step
from simulator.runtime.live_experts import LiveExperts
from simulator.runtime.live_ranks import Group, LiveRanks
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
    members: Sequence[int]
    """Number of each rank when all are there."""


class LiveDeployment:
    """Deployment on a backend's shards, with a clock of its own.

    The clock stands for the seconds since the first arrival, which policies know: it goes on during
    counted steps and while these wait for changes, and not while the driver does something else.
    Experts move and ranks join between steps, in the first gap after their time; ranks are lost in
    the first step that begins after it.
    """

    def __init__(self, plan: DeploymentPlan, job: Job, backend: Backend) -> None:
        """Begin at 0 s with nothing lost.

        Args:
            backend: has loaded the job.
        """
        self.experts = LiveExperts(plan, backend)
        self.ranks = LiveRanks(plan, job, backend)
        self.clock_s = 0.0
        self._backend, self._job = backend, job
        self._unchecked: set[str] = set()
        """Kinds of step that were not compared since the latest change."""

    def run(self, step: Step, *, counts: bool) -> LiveStep:
        """Make the changes that are due, and run a step; one that is repeated since ranks were
        lost, and the first of each kind behind a change, keep their output.

        Args:
            counts: whether the step belongs to the deployment's time; steps that warm up do not.

        Raises:
            LostError: if it fails again and again.
            UserError: if ranks are lost that it cannot do without and that never work again.
        """
        lose: list[int] = []
        if counts:
            self._rebalance(step.number)
            self._use_group(self.ranks.join(self._group, step))
            lose = self.ranks.take_failures(self.clock_s)
        try:
            shards = self._run(step, lose)
        except RanksLostError as lost:
            self._use_group(self.ranks.recover(lost, self._group, step, lose))
            shards = self._run(step)
        seconds = time.perf_counter() - self._backend.attempt_began_s
        if counts:
            self.clock_s += seconds
            self.experts.count(shards)
        if shards[0].hidden_TH is not None:
            step = replace(step, keeps_output=True)
        members = self._backend.members
        return LiveStep(step, shards, seconds, self.experts.plan, self._job, members)

    def _run(self, step: Step, lose: Sequence[int] = ()) -> list[ShardStep]:
        """Run a step, which keeps its output where it is the first of its kind behind a change."""
        if step.kind in self._unchecked and not lose:
            step = replace(step, keeps_output=True)
            self._unchecked.discard(step.kind)
        return self._backend.step(step, lose)

    @property
    def _group(self) -> Group:
        return Group(self.experts.plan, self._job, self.clock_s)

    def _use_group(self, group: Group | None) -> None:
        if group is not None:
            self.experts.plan, self._job, self.clock_s = group
            self._unchecked = {"prompt", "decode"}

    def _rebalance(self, number: int) -> None:
        """Move experts where that is due; while ranks are lost, experts stay and looks pass."""
        if not self.ranks.has_all:
            self.experts.take_look(self.clock_s, number)
            return
        seconds = self.experts.rebalance(self.clock_s, number)
        if seconds is None:
            return
        self.clock_s += seconds
        experts = self.experts.plan.placement.experts
        assert experts is not None
        self._job = self._job.place_experts(experts.placed)
        self.ranks.use_placement(self.experts.plan, self._job)
        self._unchecked = {"prompt", "decode"}
