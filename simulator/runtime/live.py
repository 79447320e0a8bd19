"""A deployment that runs for real and changes while it does, as the same policies have it that
change a simulated one.
"""

from __future__ import annotations

import copy
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
from simulator.engine.rebalancing import (
    judge_move,
    list_parts,
    moves_any,
    place_again,
    price_move,
)
from simulator.engine.replica_states import RanksLeft, count_loaded_bytes, place_on_left
from simulator.policies.contracts import decide_placement, find_interruption, list_looks
from simulator.policies.failures import Change
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import ExpertLoad, migration_rules
from simulator.results.executed import ExecutedChange, ExecutedMove
from simulator.runtime.backend import Backend, RanksLostError
from simulator.runtime.job import Job, Step
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


# Experts of a deployment that runs for real, which move between its steps as its rebalancing
# policy decides from the load that was seen.


class LiveExperts:
    """Experts on a backend's shards."""

    def __init__(self, plan: DeploymentPlan, backend: Backend) -> None:
        """Begin with the plan's placement and no load.

        Args:
            backend: has loaded the plan's job.
        """
        self.plan = plan
        """Plan with the experts where they lie now."""
        self.moves: list[ExecutedMove] = []
        self._backend = backend
        self._looks = enumerate(list_looks(plan.serving.rebalancing))
        self._next_look = next(self._looks, None)
        self._num_tokens, self._load_LE = 0, _no_load(plan)
        self._followed_LE = _no_load(plan)
        """Load since the latest move."""
        self._unmoved: Placed | None = None
        """Placement before the latest move, until that is judged."""
        self._parts: list[Placed] = []
        """Placements on the way of a move that is made in parts."""

    def count(self, shards: Sequence[ShardStep]) -> None:
        """Add a step to the load since the last look."""
        tp = self.plan.placement.layout.tp
        for shard in shards[::tp]:
            self._num_tokens += shard.num_tokens
            self._load_LE += shard.load_LE
            self._followed_LE += shard.load_LE

    def rebalance(self, at_s: float, step: int) -> float | None:
        """Ask the policy, if it is time, and move experts as it decides; of a move in parts, move
        the next one. Returns the seconds that moving took, ``None`` where none have moved.

        Args:
            at_s: seconds of the deployment's clock.
            step: number of the next step.
        """
        if self._parts:
            return self._move(self._parts.pop(0), step)
        placement = self.plan.placement
        policy = self.plan.serving.rebalancing
        by_steps = self._counts_steps
        found = self.take_look(at_s, step)
        if found is None:
            return None
        number, look = found
        load = self._measure_load(at_s if by_steps else look)
        load = load._replace(num_steps=int(look) if by_steps else step)
        placed = decide_placement(policy, load, placement.rng("rebalancing", number))
        if placed is None or not moves_any(placement, placed):
            return None
        num_layers = migration_rules(policy).layers_per_chunk or len(placed.expert_LP)
        self._parts = list(list_parts(load.placed, placed, num_layers))
        self.moves.append(
            ExecutedMove(
                at_s=at_s,
                pool="both",
                num_experts=0,
                num_bytes=0.0,
                seconds=0.0,
                imbalance_before=load.measure_imbalance(load.placed),
                imbalance_after=load.measure_imbalance(placed),
                num_parts=len(self._parts),
                step=step,
                predicted_s=0.0,
            )
        )
        self._unmoved = load.placed
        return self._move(self._parts.pop(0), step)

    @property
    def _counts_steps(self) -> bool:
        """Whether the policy looks after so many steps, and not seconds."""
        return migration_rules(self.plan.serving.rebalancing).every_steps is not None

    def take_look(self, at_s: float, step: int) -> tuple[int, float] | None:
        """Take the latest look that is due, with its number; those before it, which came during the
        same step or move, are left out.

        Args:
            at_s: seconds of the deployment's clock.
            step: number of the next step.
        """
        found, passed = None, step if self._counts_steps else at_s
        while self._next_look is not None and self._next_look[1] <= passed:
            found, self._next_look = self._next_look, next(self._looks, None)
        return found

    def _measure_load(self, look_s: float) -> ExpertLoad:
        """Measure the load since the last look, and judge the latest move by what followed it."""
        assert self.plan.placement.experts is not None
        placed = copy.deepcopy(self.plan.placement.experts.placed)
        load = ExpertLoad(look_s, self._num_tokens, self._load_LE, placed)
        if self._unmoved is not None and self._followed_LE.any():
            followed = load._replace(load_LE=self._followed_LE)
            self.moves[-1] = judge_move(self.moves[-1], followed, self._unmoved)
            self._unmoved = None
        self._num_tokens, self._load_LE = 0, _no_load(self.plan)
        return load

    def _move(self, placed: Placed, step: int) -> float:
        """Move experts for real, and add what that took to the latest move. Returns its seconds."""
        placement, moved = self.plan.placement, self.moves[-1]
        host_s = migration_rules(self.plan.serving.rebalancing).host_s_per_layer
        unused = ExpertLoad(moved.at_s, 0, _no_load(self.plan), placed)
        priced = price_move(placement, placed, unused, moved.pool, host_s)
        began_s = time.perf_counter()
        received = self._backend.place_experts(placed, step)
        took_s = time.perf_counter() - began_s
        self.moves[-1] = replace(
            moved,
            num_experts=moved.num_experts
            + sum(one.num_experts for one in received) // placement.layout.moe_tp,
            num_bytes=moved.num_bytes + sum(one.num_bytes for one in received),
            seconds=moved.seconds + took_s,
            predicted_s=moved.predicted_s + priced.seconds,
        )
        self.plan = replace(self.plan, placement=place_again(placement, placed))
        self._followed_LE = _no_load(self.plan)
        return took_s


def _no_load(plan: DeploymentPlan) -> NDArray[np.float64]:
    moe = plan.placement.model.moe
    num_experts = 0 if moe is None else moe.num_experts
    return np.zeros((plan.placement.model.num_moe_layers, num_experts))


# Ranks of a deployment that runs for real, which are killed and come back as its failure policies
# have it, and go on as its recovery policy does.


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
