"""Backend with every rank as a Ray actor. Ranks that die or hang are replaced, and their step is
run again, unless they are lost on purpose: then who goes on is another's decision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from simulator.base import plugins
from simulator.base.errors import LostError
from simulator.config.execution import ExecutionSpec, FaultSpec
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.placement import Placed
from simulator.runtime.backend import Backend, Fault, RanksLostError, ShardsLostError, take_due
from simulator.runtime.job import Job, Step
from simulator.runtime.load import Patience
from simulator.runtime.moving import Received
from simulator.runtime.nodes import Nodes
from simulator.runtime.ray_actors import RankActors, collect_answers
from simulator.runtime.shard import ShardStep
from simulator.runtime.transport import Meeting

_MOST_RECOVERIES = 8
"""Failures of one step before it is given up: replacing ranks does not help then."""


class RayBackend:
    """Backend of ``size`` shards on Ray actors."""

    def __init__(self, nodes: Nodes, node_R: NDArray[np.int64], execution: ExecutionSpec) -> None:
        """Start the actors where the plan places them, and connect them.

        Args:
            node_R: node of each rank; ranks of one node share a Ray node, ranks of different nodes
                do not.

        Raises:
            UserError: if the cluster has too few nodes, or cannot start them.
        """
        self.nodes, self.node_R, self.size = nodes, node_R, len(node_R)
        self._transport, self._patience = execution.transport, Patience(execution.timeout_s)
        self._planned_faults = list(execution.faults)
        self.has_planned_faults = bool(execution.faults)
        self.faults: list[Fault] = []
        self.attempt_began_s = 0.0
        """Time at which the last step was begun for the last time, after every recovery in it."""
        self.on_fault: Callable[[Fault], None] = lambda _: None
        self._job: Job | None = None
        self._meeting: Meeting | None = None
        self.members = list(range(self.size))
        """Ranks of the group, in the order of their numbers in it, by their number in the plan."""
        self._loaded: dict[int, int] = {}
        """Bytes of experts that each rank has loaded since the group was formed."""
        self._stale: set[int] = set()
        """Members that do not know their number in the group or their job yet."""
        self._starting: dict[int, Any] = {}
        """Answers of ranks that were started again and load their weights; no members yet."""
        self._all_node_R = node_R
        self._ranks = RankActors(nodes, node_R)
        self._meet()

    def _meet(self) -> None:
        """Form the transport anew over all ranks."""
        policy = plugins.build("runtime.transport", self._transport, "execution [transport]")
        timeout_s = self._patience.first_s
        self._meeting = policy.meeting(self.size, timeout_s, self.nodes.own_address)
        address = self._meeting.address
        self._ask_all(
            lambda actor: actor.join.remote(self._transport, address, timeout_s), timeout_s
        )

    @property
    def actors(self) -> dict[int, Any]:
        """Handle of each member's actor."""
        return {rank: self._ranks.actors[rank] for rank in self.members}

    @property
    def ranks_per_machine(self) -> list[int]:
        """Number of ranks that share the cores of each rank's machine."""
        return [self._ranks.count_neighbours(rank) for rank in self.members]

    def load(self, job: Job) -> list[int]:
        """Build every rank's part of the model. Returns the number of parameters on each."""
        self._job = job
        self._patience.forget()
        return self._ask_all(lambda actor: actor.load.remote(job))

    def apply(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(shard, *arguments)`` on every rank at once."""
        return self._ask_all(lambda actor: actor.apply.remote(function, *arguments))

    def step(self, step: Step, lose: Collection[int] = ()) -> list[ShardStep]:
        """Run a step on all members, however often some of them fail.

        Args:
            lose: members that are killed while the step runs, and not replaced.

        Raises:
            LostError: if it fails again and again.
            RanksLostError: once the others have noticed that members were lost on purpose.
        """
        for attempt in range(_MOST_RECOVERIES):
            self.attempt_began_s = time.perf_counter()
            timeout_s = self._patience.limit_s(step.kind)
            answers = {rank: one.step.remote(step, timeout_s) for rank, one in self.actors.items()}
            broken = {
                rank
                for fault in take_due(self._planned_faults, step.number, attempt)
                for rank in self._break(fault)
            }
            for rank in lose:
                self.kill(rank)
            lost_s = time.perf_counter()
            try:
                found = self._ask(answers, timeout_s)
                if broken or lose:  # they had answered before they died
                    raise ShardsLostError({*broken, *lose}, set(), [], timeout_s)
            except ShardsLostError as lost:
                if lose:
                    self._leave_out(lost.died | lost.hung | set(lose))
                    raise RanksLostError(lost_s, time.perf_counter()) from None
                self._recover(step.number, lost)
                self._patience.forget()
                continue
            self._patience.learn(step.kind, time.perf_counter() - self.attempt_began_s)
            return [self._shift_to_own_clock(found[rank], rank) for rank in self.members]
        raise LostError(
            f"step {step.number} failed {_MOST_RECOVERIES} times: {self.faults[-1].what}"
        )

    def _leave_out(self, ranks: Collection[int]) -> None:
        """Go on without ranks that are dead, or are killed now."""
        self._ranks.stop(ranks)
        self.members = [rank for rank in self.members if rank not in ranks]

    def regroup(
        self, job: Job, members: Sequence[int], number: int, *, anew: bool = False
    ) -> list[int]:
        """Let some ranks go on together. Returns the bytes of experts that each loaded into the
        model that it had.

        Args:
            number: of the step that was running, for records of faults.
            anew: whether all ranks are started anew.

        Raises:
            LostError: if ranks fail again and again meanwhile.
        """
        there = [rank for rank in members if rank in self._ranks.actors and not anew]
        self._ranks.stop(
            [
                rank
                for rank in self._ranks.actors
                if rank not in there and (anew or rank not in self._starting)
            ]
        )
        self._job, self.members, self.size = job, list(members), len(members)
        self.node_R = self._all_node_R[self.members]
        self._patience.forget()
        self._stale = set(self.members)
        self._loaded = {}
        ready = {rank: self._starting.pop(rank) for rank in members if rank in self._starting}
        self._starting = {} if anew else self._starting
        try:
            absent = [rank for rank in members if rank not in there]
            self._ranks.start(absent)
            collect_answers({} if anew else ready, None)
            self._ranks.greet(self.members)
            self._assemble()
        except ShardsLostError as lost:
            self._recover(number, lost)
        return [self._loaded.get(rank, 0) for rank in self.members]

    def start(self, ranks: Collection[int], job: Job) -> None:
        """Start ranks again that were lost, beside the others, and let them load a job's weights;
        they are no members yet.
        """
        absent = [rank for rank in ranks if rank not in self._starting]
        self._ranks.start(absent)
        for rank in absent:
            self._starting[rank] = self._ranks.actors[rank].load.remote(job)

    def have_started(self, ranks: Collection[int]) -> bool:
        """Whether ranks that were started are ready to join, or dead, without waiting for them."""
        answers = [self._starting[rank] for rank in ranks]
        return not answers or not ray.wait(answers, num_returns=len(answers), timeout=0)[1]

    def _assemble(self) -> None:
        """Tell members that do not know it yet who they are, and form the transport anew.

        Raises:
            ShardsLostError: if some are lost meanwhile.
        """
        if self._job is not None:
            job = ray.put(self._job)
            self._loaded |= self._ask(
                {
                    rank: self._ranks.actors[rank].regroup.remote(number, self.size, job)
                    for number, rank in enumerate(self.members)
                    if rank in self._stale
                },
                None,
            )
        self._stale.clear()
        self._meet()

    def place_experts(self, placed: Placed, number: int) -> list[Received]:
        """Move the experts of all ranks to where another placement has them. Returns what each rank
        got from others; where some fail meanwhile, all load what they lack instead.

        Args:
            number: of the step before, for records of faults.

        Raises:
            LostError: if they fail again and again.
        """
        if self._job is None:
            raise RuntimeError("experts were told to move before there were any")
        self._job = self._job.place_experts(placed)
        try:
            return self._ask_all(
                lambda actor: actor.place_experts.remote(placed), self._patience.first_s
            )
        except ShardsLostError as lost:
            self._stale = set(self.members)
            self._recover(number, lost)
            return [Received(0, 0)] * self.size

    def _ask_all(self, ask: Callable[[Any], Any], timeout_s: float | None = None) -> list[Any]:
        """Ask every member, and collect the answers in their order."""
        found = self._ask({rank: ask(actor) for rank, actor in self.actors.items()}, timeout_s)
        return [found[rank] for rank in self.members]

    def _shift_to_own_clock(self, found: ShardStep, rank: int) -> ShardStep:
        offset_s = self._ranks.find_clock_offset_s(rank)
        if offset_s:
            found.moments[:] = [
                m._replace(start_s=m.start_s - offset_s, end_s=m.end_s - offset_s)
                for m in found.moments
            ]
        return found

    def _ask(self, answers: dict[int, Any], timeout_s: float | None) -> dict[int, Any]:
        """Collect every rank's answer, as :func:`collect_answers` does."""
        meeting = self._meeting
        return collect_answers(
            answers, timeout_s, (lambda: None) if meeting is None else meeting.abort
        )

    def _break(self, fault: FaultSpec) -> set[int]:
        """Kill what a fault names. Returns the members that die of it."""
        if fault.node is None:
            died = [rank for rank in self.members if rank == fault.rank]
        else:
            died = self._ranks.list_on(self.nodes.id_of(fault.node))
        for rank in died:  # those of a node too: a process outlives its raylet for a moment
            self.kill(rank)
        if fault.node is not None:
            self.nodes.kill(fault.node)
        return set(died) & set(self.members)

    def kill(self, rank: int) -> None:
        """Kill a rank's process without notice."""
        self._ranks.kill(rank)

    def _recover(self, number: int, lost: ShardsLostError) -> None:
        """Replace ranks until all have met again, and record the fault.

        Args:
            number: of the step that was running.
        """
        began_s = time.perf_counter()
        for attempt in range(_MOST_RECOVERIES):
            gone = sorted(lost.died | lost.hung)
            name = self._job.name if self._job else ""
            fault = Fault(name, number, gone, self._describe(lost), 0.0)
            try:
                for rank in lost.hung:
                    self.kill(
                        rank
                    )  # Ray would ask the process first, for seconds, and keep its place taken
                self._replace(gone)
                for planned in take_due(self._planned_faults, number, attempt, in_recovery=True):
                    self._break(planned)
                self._assemble()
            except ShardsLostError as again:
                self._note(fault, began_s)
                lost, began_s = again, time.perf_counter()
                continue
            self._note(fault, began_s)
            return
        raise LostError(
            f"step {number}: recovery failed {_MOST_RECOVERIES} times: {self.faults[-1].what}"
        )

    def _note(self, fault: Fault, began_s: float) -> None:
        noted = fault._replace(recovery_s=time.perf_counter() - began_s)
        self.faults.append(noted)
        self.on_fault(noted)

    def _describe(self, lost: ShardsLostError) -> str:
        alive = self.nodes.alive
        silent = (
            "was replaced too, since it went on waiting"
            if lost.died
            else f"did not answer for {lost.waited_s or 0.0:.3g} s"
        )
        said = []
        for rank in sorted(lost.died | lost.hung):
            if self._ranks.find_node(rank) not in alive:
                said.append(f"rank {rank} died with its node")
            else:
                said.append(f"rank {rank} {'died' if rank in lost.died else silent}")
        return "; ".join(said) or f"ranks lost each other: {lost.complaints[0]}"

    def _replace(self, ranks: list[int]) -> None:
        """Start ranks again that are gone."""
        self._stale |= set(ranks)
        if ranks:
            self._ranks.start(ranks)
            self._ranks.greet(ranks)

    def close(self) -> None:
        """Stop the actors and release their places, unless the cluster is lost."""
        self._ranks.close()


class RaySite:
    """Nodes of a Ray cluster, where shards run."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        count = len(nodes.alive)
        self.description = f"{count} {'simulated nodes' if nodes.simulated else 'node(s)'}"

    def start(self, node_R: NDArray[np.int64], execution: ExecutionSpec) -> RayBackend:
        """Start actors on the nodes of their ranks."""
        return RayBackend(self._nodes, self._nodes.spread(node_R), execution)

    def fits(self, backend: Backend, plan: DeploymentPlan) -> bool:
        """Whether a backend's actors are where the plan places them, and no fault is planned for
        them.
        """
        assert isinstance(backend, RayBackend)
        wanted = self._nodes.spread(plan.placement.fabric.node_R)
        return list(backend.node_R) == list(wanted) and not backend.has_planned_faults
