"""Ranks of a deployment that runs for real, which are killed and come back as its failure policies
have it, and go on as its recovery policy does.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.deployment.conditions import shrink_placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.changes import Outages
from simulator.engine.replica_states import RanksLeft, count_loaded_bytes, place_on_left
from simulator.policies.contracts import find_interruption
from simulator.policies.failures import Change
from simulator.results.executed import ExecutedChange
from simulator.runtime.backend import Backend
from simulator.runtime.faults import RanksLostError
from simulator.runtime.job import Job, Step


class Group(NamedTuple):
    """Ranks that go on together."""

    plan: DeploymentPlan
    job: Job
    clock_s: float
    """Time at which they do, by the deployment's clock."""


class _Starting(NamedTuple):
    """Ranks that were started again and have not joined yet."""

    change: Change
    ranks: list[int]


class LiveRanks:
    """Ranks on a backend's shards, by their number when all are there."""

    def __init__(self, plan: DeploymentPlan, job: Job, backend: Backend) -> None:
        """Begin with all ranks.

        Args:
            backend: has loaded the job.
        """
        self._whole = Group(plan, job, 0.0)
        self._backend = backend
        self._outages = Outages(plan)
        self._changes = heapq.merge(*plan.list_failures(), key=lambda change: change.at_s)
        self._next = next(self._changes, None)
        self._left: RanksLeft | None = None
        """Ranks that are left; ``None`` while all are there."""
        self._starting: list[_Starting] = []
        self.changed: list[ExecutedChange] = []

    @property
    def has_all(self) -> bool:
        """Whether no rank is lost."""
        return self._left is None

    def use_placement(self, plan: DeploymentPlan, job: Job) -> None:
        """Go by another placement of experts, to which they have moved while all ranks were there.

        Args:
            plan: with the experts where they lie now.
            job: of that plan.
        """
        self._whole = self._whole._replace(plan=plan, job=job)

    def take_failures(self, at_s: float) -> list[int]:
        """Take what is due: begin to start ranks whose GPUs work again, and list the members whose
        GPUs fail.

        Args:
            at_s: seconds of the deployment's clock.
        """
        lost: set[int] = set()
        while self._next is not None and self._next.at_s <= at_s:
            if self._next.starts and lost:
                break  # what is lost is noticed before it comes back
            change = self._take_change()
            if change.is_notice:
                continue  # there are no requests to be held back
            ranks = self._list_ranks(change)
            if not change.starts:
                self._outages.apply(change)
                lost |= set(ranks) & set(self._backend.members)
                continue
            if self._left is None:
                self._outages.apply(change)
                continue
            absent = [rank for rank in ranks if rank not in self._backend.members]
            self._backend.start(absent, self._whole.job)
            self._starting.append(_Starting(change, absent))
        return sorted(lost)

    def _take_change(self) -> Change:
        assert self._next is not None
        change, self._next = self._next, next(self._changes, None)
        return change

    def _list_ranks(self, change: Change) -> list[int]:
        """Ranks on the GPUs of a change."""
        found: list[int] = self._outages.list_gpus(change, 0).tolist()
        return found

    def recover(self, lost: RanksLostError, now: Group, step: Step, ranks: list[int]) -> Group:
        """Go on without ranks that were lost while a step ran, or start all anew where the recovery
        policy cannot do without them.

        Args:
            now: the ranks as they were, and the time of the loss.
            ranks: ranks that were lost.

        Raises:
            UserError: if they can neither be done without nor work again.
            LostError: if others fail again and again meanwhile.
        """
        policy, hang_s = now.plan.serving.recovery, lost.noticed_s - lost.lost_s
        self._note("hangs", now, step, ranks, hang_s, policy.detection_s)
        noticed = now._replace(clock_s=now.clock_s + hang_s)
        lost_D = self._outages.find_lost(0)
        left = place_on_left(self._whole.plan, self._left, lost_D)
        if left is None:
            self._note("stops", noticed, step, ranks, num_requests=step.num_sequences)
            return self._restart(noticed, step, ranks)
        members = self._list_members(self._left)
        num_requests = sum(
            end - first
            for rank in ranks
            for first, end in [now.job.sequences(members.index(rank), step.num_sequences)]
        )
        return self._regroup(
            left, noticed, step, ranks, num_requests=num_requests, since_s=lost.noticed_s
        )

    def join(self, now: Group, step: Step) -> Group | None:
        """Let ranks join again that have started; ``None`` where none have.

        Raises:
            LostError: if ranks fail again and again meanwhile.
        """
        ready = [one for one in self._starting if self._backend.have_started(one.ranks)]
        if not ready:
            return None
        self._starting = [one for one in self._starting if one not in ready]
        before = set(self._backend.members)
        for one in ready:
            self._outages.apply(one.change)
        lost_D, left = self._outages.find_lost(0), None
        if lost_D.any():
            left = place_on_left(self._whole.plan, self._left, lost_D)
            if left is None:
                return None
        joined = [rank for rank in self._list_members(left) if rank not in before]
        if not joined:
            return None
        return self._regroup(left, now, step, joined, since_s=time.perf_counter())

    def _list_members(self, left: RanksLeft | None) -> list[int]:
        """List the ranks that are left, or all."""
        layout = self._whole.plan.placement.layout
        if left is None:
            return list(range(layout.num_ranks))
        found: list[int] = left.list_ranks(layout.tp).tolist()
        return found

    def _regroup(
        self,
        left: RanksLeft | None,
        now: Group,
        step: Step,
        ranks: Sequence[int],
        *,
        since_s: float,
        num_requests: int = 0,
    ) -> Group:
        """Form a group of the ranks that are left.

        Args:
            left: ranks and their experts; ``None`` for all.
            ranks: ranks that have left or joined.
            since_s: time from which that is measured, by :func:`time.perf_counter`.
            num_requests: sequences of the step that had their caches on these ranks.
        """
        plan, job, _ = self._whole
        bytes_to_load, grows = 0.0, set(ranks) <= set(self._list_members(left))
        if left is not None:
            is_left_D = np.isin(np.arange(plan.placement.layout.attention_dp), left.left_d)
            shrunk = shrink_placement(plan, is_left_D, left.placed)
            if not grows:
                bytes_to_load = count_loaded_bytes(plan.placement, self._left, left)
            plan, job = replace(plan, placement=shrunk), job.shrink(shrunk)
        loaded = self._backend.regroup(job, self._list_members(left), step.number)
        took_s = time.perf_counter() - since_s
        self._left = left
        self._note(
            "grows" if grows else "shrinks",
            Group(plan, job, now.clock_s),
            step,
            ranks,
            took_s,
            find_interruption(plan.serving.recovery, bytes_to_load),
            num_requests=num_requests,
            loaded_bytes=float(max(loaded)),
        )
        return Group(plan, job, now.clock_s + took_s)

    def _restart(self, now: Group, step: Step, ranks: Sequence[int]) -> Group:
        """Start all ranks anew once all GPUs work again, which the clock is put forward to.

        Raises:
            UserError: if some never do.
        """
        at_s = now.clock_s
        for one in self._starting:
            self._outages.apply(one.change)
        self._starting.clear()
        while self._outages.find_lost(0).any():
            if self._next is None:
                raise UserError(_explain_stop(now.plan, self._outages.find_lost(0), ranks))
            change = self._take_change()
            if not change.is_notice:
                at_s = max(at_s, change.at_s)
                self._outages.apply(change)
        plan, job = now.plan, now.job
        if self._left is not None:
            plan, job, _ = self._whole
        self._left = None
        began_s = time.perf_counter()
        all_ranks = range(plan.placement.layout.num_ranks)
        self._backend.regroup(job, list(all_ranks), step.number, anew=True)
        took_s = time.perf_counter() - began_s
        group = Group(plan, job, at_s + took_s)
        self._note("starts", group, step, all_ranks, took_s, plan.serving.recovery.startup_s)
        return group

    def _note(
        self,
        kind: str,
        group: Group,
        step: Step,
        ranks: Sequence[int],
        seconds: float = 0.0,
        predicted_s: float = 0.0,
        *,
        num_requests: int = 0,
        loaded_bytes: float = 0.0,
    ) -> None:
        serves = kind in ("shrinks", "grows", "starts")
        waits_s = seconds if kind in ("shrinks", "grows") else 0.0
        self.changed.append(
            ExecutedChange(
                at_s=group.clock_s,
                pool="both",
                kind=kind,
                starts=kind in ("grows", "starts"),
                replicas=[0],
                num_requests=num_requests,
                num_gpus=group.plan.placement.layout.num_gpus if serves else 0,
                serves_s=group.clock_s + waits_s,
                step=step.number,
                ranks=tuple(ranks),
                seconds=seconds,
                predicted_s=predicted_s,
                loaded_bytes=loaded_bytes,
            )
        )


def _explain_stop(plan: DeploymentPlan, lost_D: NDArray[np.bool_], ranks: Sequence[int]) -> str:
    """Say why a replica cannot go on without ranks that never come back, and what would do."""
    one = len(ranks) == 1
    named = f"{'rank' if one else 'ranks'} {', '.join(map(str, ranks))}"
    says = f"deployment '{plan.name}': {named} failed and never {'works' if one else 'work'} again"
    experts, moe = plan.placement.experts, plan.placement.model.moe
    num_left = int((~lost_D).sum()) * plan.placement.layout.tp
    if plan.spec.recovery["kind"] == "restart" or not num_left or experts is None or moe is None:
        return (
            f"{says}, so that the replica does not start again; give the failure a restart_s, or "
            'leave the ranks out with recovery = { kind = "elastic" }'
        )
    enough = -(-moe.num_experts // num_left) * len(lost_D) * plan.placement.layout.tp
    left = "the one that is left has" if num_left == 1 else f"the {num_left} that are left have"
    return (
        f"{says}, and {left} too few slots for {moe.num_experts} experts; give the failure a "
        f"restart_s, or the placement num_slots = {enough}"
    )
