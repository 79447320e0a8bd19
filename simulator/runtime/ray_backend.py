"""Backend with every rank as a Ray actor. Ranks that die or hang are replaced, and their step is
run again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from simulator.base import plugins
from simulator.base.errors import LostError, UserError
from simulator.base.trust import allow_as_sender, allowed_folder
from simulator.config.execution import ExecutionSpec, FaultSpec
from simulator.runtime.faults import Fault, ShardsLostError, take_due
from simulator.runtime.job import Job, Step
from simulator.runtime.nodes import Nodes
from simulator.runtime.patience import Patience
from simulator.runtime.shard import Shard, ShardStep, threads_per_rank
from simulator.runtime.transport import Meeting, PeerLostError

RemoteShard = ray.remote(Shard)

_START_S = 120.0
"""Longest start of actors, seconds: each imports PyTorch."""
_GRACE_S = 30.0
"""Seconds after a rank's death within which the others report that they miss it. They do so at
once, but on a machine with twice as many busy processes as cores one was seen to need over 10 s."""
_HUNG_GRACE_S = 3.0
"""Seconds after one rank has waited in vain within which the others that waited report it."""
_MOST_RECOVERIES = 8
"""Failures of one step before it is given up: replacing ranks does not help then."""


def _allow(_: Shard, folder: Path | None) -> None:
    allow_as_sender(folder)


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
        self._groups: list[PlacementGroup] = []
        self._actors: list[Any] = [None] * self.size
        self._pids = [0] * self.size
        self._offset_s = [0.0] * self.size
        self._meeting: Meeting | None = None
        self._home: dict[int, tuple[PlacementGroup, int]] = {}
        self._started_on: dict[int, str | None] = {}
        self._boots: dict[int, str] = {}
        self._empty: set[int] = set()
        """Ranks that were replaced and have no model yet."""
        self._place()
        self._meet()

    def _place(self) -> None:
        wanted, alive = len(set(self.node_R.tolist())), self.nodes.alive
        if wanted > len(alive):
            raise UserError(
                f"the plan spreads its ranks over {wanted} nodes, but the cluster "
                f"has {len(alive)}; try --simulated-nodes {wanted}"
            )
        ranks_of = Counter(self.node_R.tolist())
        # Ranks beyond a node's CPUs share them: that is slow, and measured as such, but not
        # forbidden.
        share = min(1.0, min(sorted(alive.values())[-wanted:]) / max(ranks_of.values()))
        self._cpus = max(int(share * 1000) / 1000, 0.001)
        # A GPU a rank where there are enough, and none for anybody otherwise: all ranks must speak
        # the same protocol.
        self._gpus = int(self.nodes.gpus >= max(ranks_of.values()))
        bundles = [
            {**self._share(ranks_of[node]), **self.nodes.resources(node)}
            for node in sorted(ranks_of)
        ]
        group = placement_group(bundles, strategy="STRICT_SPREAD" if wanted > 1 else "PACK")
        self._wait_for(group, f"{wanted} nodes with {max(ranks_of.values())} ranks each")
        for rank in range(self.size):
            self._start(rank, group, sorted(ranks_of).index(self.node_R[rank]))
        self._greet(range(self.size))

    def _share(self, num_ranks: int) -> dict[str, float]:
        """Resources that so many ranks need of a node."""
        return {"CPU": self._cpus * num_ranks} | ({"GPU": float(num_ranks)} if self._gpus else {})

    def _wait_for(self, group: PlacementGroup, what: str) -> None:
        if not group.wait(_START_S):
            found = ", ".join(f"{cpus:g}" for cpus in self.nodes.alive.values())
            raise UserError(
                f"the cluster has no room for {what}: its living nodes have {found or 'no'} CPUs, "
                "and others may use them"
            )
        self._groups.append(group)

    def _start(self, rank: int, group: PlacementGroup, bundle: int) -> None:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        self._actors[rank] = RemoteShard.options(
            num_cpus=self._cpus, num_gpus=self._gpus, scheduling_strategy=strategy
        ).remote(rank, self.size)
        self._actors[rank].apply.remote(_allow, allowed_folder())
        self._home[rank] = (group, bundle)
        self._pids[rank] = 0

    def _greet(self, ranks: Any) -> None:
        """Read each rank's process and clock, and divide the cores of each machine."""
        own_boot = Shard(0, 1).process()[1]
        found = self._ask({rank: self._actors[rank].process.remote() for rank in ranks}, _START_S)
        self._started_on |= {rank: self._node_of(rank) for rank in found}
        self._boots |= {rank: boot for rank, (_, boot) in found.items()}
        for rank, (pid, boot) in found.items():
            self._pids[rank] = pid if boot == own_boot else 0
            self._offset_s[rank] = 0.0 if boot == own_boot else self._clock_offset(rank)
        on_machine = Counter(self._boots.values())
        self._ask(
            {
                rank: self._actors[rank].use_threads.remote(threads_per_rank(on_machine[boot]))
                for rank, boot in self._boots.items()
            },
            _START_S,
        )

    def _clock_offset(self, rank: int) -> float:
        """Seconds that another machine's clock is ahead, from the fastest of some round trips
        (Cristian 1989).
        """
        trips = []
        for _ in range(8):
            asked_s = time.perf_counter()
            told_s = ray.get(self._actors[rank].clock_s.remote())
            answered_s = time.perf_counter()
            trips.append((answered_s - asked_s, told_s - (asked_s + answered_s) / 2))
        offset_s: float = min(trips)[1]
        return offset_s

    def _meet(self) -> None:
        """Form the transport anew over all ranks."""
        policy = plugins.build("runtime.transport", self._transport, "execution [transport]")
        timeout_s = self._patience.first_s
        self._meeting = policy.meeting(self.size, timeout_s)
        address = self._meeting.address
        self._ask(
            {
                r: actor.join.remote(self._transport, address, timeout_s)
                for r, actor in enumerate(self._actors)
            },
            timeout_s,
        )

    @property
    def _ranks(self) -> list[tuple[int, Any]]:
        return list(enumerate(self._actors))

    @property
    def ranks_per_machine(self) -> list[int]:
        """Number of ranks that share the cores of each rank's machine."""
        on_machine = Counter(self._boots.values())
        return [on_machine[self._boots[rank]] for rank in range(self.size)]

    def load(self, job: Job) -> list[int]:
        """Build every rank's part of the model. Returns the number of parameters on each."""
        self._job = job
        self._patience.forget()
        found = self._ask({rank: actor.load.remote(job) for rank, actor in self._ranks}, None)
        return [found[rank] for rank in range(self.size)]

    def apply(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(shard, *arguments)`` on every rank at once."""
        found = self._ask(
            {
                rank: actor.apply.remote(function, *arguments)
                for rank, actor in enumerate(self._actors)
            },
            None,
        )
        return [found[rank] for rank in range(self.size)]

    def step(self, step: Step) -> list[ShardStep]:
        """Run a step on all ranks, however often some of them fail.

        Raises:
            LostError: if it fails again and again.
        """
        for attempt in range(_MOST_RECOVERIES):
            self.attempt_began_s = time.perf_counter()
            timeout_s = self._patience.limit_s(step.kind)
            try:
                found = self._ask(
                    {rank: one.step.remote(step, timeout_s) for rank, one in self._ranks},
                    timeout_s,
                    take_due(self._planned_faults, step.number, attempt),
                )
            except ShardsLostError as lost:
                self._recover(step, lost)
                self._patience.forget()
                continue
            self._patience.learn(step.kind, time.perf_counter() - self.attempt_began_s)
            return [self._shift_to_own_clock(found[rank]) for rank in range(self.size)]
        raise LostError(
            f"step {step.number} failed {_MOST_RECOVERIES} times: {self.faults[-1].what}"
        )

    def _shift_to_own_clock(self, found: ShardStep) -> ShardStep:
        offset_s = self._offset_s[found.rank]
        if offset_s:
            found.moments[:] = [
                m._replace(start_s=m.start_s - offset_s, end_s=m.end_s - offset_s)
                for m in found.moments
            ]
        return found

    def _ask(
        self,
        answers: dict[int, Any],
        timeout_s: float | None,
        break_now: list[FaultSpec] | None = None,
    ) -> dict[int, Any]:
        """Collect every rank's answer.

        Args:
            timeout_s: for all of them together; a rank that reports that another did not come does
                so after this time.

        Raises:
            ShardsLostError: naming the ranks that died, and those that are hung: they answer
                nothing while others have given up.
        """
        for fault in break_now or []:
            self._break(fault)
        rank_of = {answer: rank for rank, answer in answers.items()}
        pending = list(rank_of)
        found: dict[int, Any] = {}
        died: set[int] = set()
        complaints: list[str] = []
        # Twice: a rank may come to an exchange just before the others give up on it.
        until_s = None if timeout_s is None else time.monotonic() + 2 * timeout_s + _HUNG_GRACE_S
        while pending:
            left_s = 1.0 if until_s is None else min(1.0, until_s - time.monotonic())
            if left_s <= 0:
                break
            ready, pending = ray.wait(pending, timeout=left_s)
            for answer in ready:
                rank = rank_of[answer]
                try:
                    found[rank] = ray.get(answer)
                except RayActorError:
                    died.add(rank)
                except RayTaskError as error:
                    if isinstance(error.cause, UserError):
                        raise error.cause from None
                    if not isinstance(error.cause, PeerLostError):
                        raise
                    complaints.append(str(error.cause))
            if (died or complaints) and ready:
                grace_s = _GRACE_S if died else max(_HUNG_GRACE_S, 0.2 * (timeout_s or 0.0))
                until_s = time.monotonic() + grace_s
                if died and self._meeting is not None:
                    self._meeting.abort()
        if died or complaints or pending:
            hung = {rank_of[answer] for answer in pending}
            raise ShardsLostError(died, hung, complaints, timeout_s)
        return found

    def _break(self, fault: FaultSpec) -> None:
        if fault.node is not None:
            node = self.nodes.id_of(fault.node)
            for rank in range(
                self.size
            ):  # a process outlives its raylet for a moment, in which it could finish the step
                if self._started_on[rank] == node:
                    self.kill(rank)
            self.nodes.kill(fault.node)
        elif fault.rank is not None and fault.rank < self.size:
            self.kill(fault.rank)

    def kill(self, rank: int) -> None:
        """Kill a rank's process without notice."""
        if self._pids[rank]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[rank], signal.SIGKILL)
        else:
            ray.kill(self._actors[rank])

    def _recover(self, step: Step, lost: ShardsLostError) -> None:
        """Replace ranks until all have met again, and record the fault."""
        began_s = time.perf_counter()
        for attempt in range(_MOST_RECOVERIES):
            gone = sorted(lost.died | lost.hung)
            fault = Fault(
                self._job.name if self._job else "", step.number, gone, self._describe(lost), 0.0
            )
            try:
                for rank in lost.hung:
                    self.kill(
                        rank
                    )  # Ray would ask the process first, for seconds, and keep its place taken
                self._replace(gone)
                for planned in take_due(
                    self._planned_faults, step.number, attempt, in_recovery=True
                ):
                    self._break(planned)
                self._meet()
                if self._job is not None:
                    self._ask(
                        {rank: self._actors[rank].load.remote(self._job) for rank in self._empty},
                        None,
                    )
                    self._empty.clear()
            except ShardsLostError as again:
                self._note(fault, began_s)
                lost, began_s = again, time.perf_counter()
                continue
            self._note(fault, began_s)
            return
        raise LostError(
            f"step {step.number}: recovery failed {_MOST_RECOVERIES} times: {self.faults[-1].what}"
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
            if self._node_of(rank) not in alive:
                said.append(f"rank {rank} died with its node")
            else:
                said.append(f"rank {rank} {'died' if rank in lost.died else silent}")
        return "; ".join(said) or f"ranks lost each other: {lost.complaints[0]}"

    def _node_of(self, rank: int) -> str | None:
        group, bundle = self._home[rank]
        table = ray.util.placement_group_table(group)
        node: str | None = table["bundles_to_node_id"].get(bundle)
        return node

    def _replace(self, ranks: list[int]) -> None:
        """Start ranks again: in their old place where its node lives, otherwise wherever there is
        room.
        """
        alive = self.nodes.alive
        homeless = [rank for rank in ranks if self._node_of(rank) not in alive]
        for rank in ranks:
            if rank not in homeless:
                self._start(rank, *self._home[rank])
        if homeless:
            group = placement_group([self._share(1)] * len(homeless), strategy="SPREAD")
            self._wait_for(group, f"the {len(homeless)} ranks of the node that was lost")
            for bundle, rank in enumerate(homeless):
                self._start(rank, group, bundle)
        self._empty |= set(ranks)
        if ranks:
            self._greet(ranks)

    def close(self) -> None:
        """Stop the actors and release their places, unless the cluster is lost."""
        if self.nodes.is_lost:
            return
        for actor in self._actors:
            if actor is not None:
                ray.kill(actor)
        for group in self._groups:
            ray.util.remove_placement_group(group)
