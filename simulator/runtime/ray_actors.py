"""Actors of ranks: where on a cluster's nodes they live, and how they are started and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from simulator.base.errors import UserError
from simulator.runtime.backend import ShardsLostError
from simulator.runtime.nodes import Nodes
from simulator.runtime.ray_home import Sender
from simulator.runtime.shard import Shard, threads_per_rank
from simulator.runtime.shard_process import ShardProcess
from simulator.runtime.transport import PeerLostError

RemoteShard = ray.remote(ShardProcess)

_START_S = 120.0
"""Longest start of actors, seconds: each imports PyTorch."""


def _greet(_: Shard, sender: Sender) -> None:
    sender.greet()


class RankActors:
    """Actors of the ranks of a plan, by their number in it, which they keep whatever becomes of the
    others.
    """

    def __init__(self, nodes: Nodes, node_R: NDArray[np.int64]) -> None:
        """Start an actor for each rank where the plan places it.

        Args:
            node_R: node of each rank; ranks of one node share a Ray node, ranks of different nodes
                do not.

        Raises:
            UserError: if the cluster has too few nodes, or cannot start them.
        """
        self.nodes, self.size = nodes, len(node_R)
        self.actors: dict[int, Any] = {}
        self._groups: list[PlacementGroup] = []
        self._pids: dict[int, int] = {}
        self._offset_s: dict[int, float] = {}
        self._home: dict[int, tuple[PlacementGroup, int]] = {}
        self._started_on: dict[int, str | None] = {}
        self._boots: dict[int, str] = {}
        self._place(node_R)

    def _place(self, node_R: NDArray[np.int64]) -> None:
        wanted, alive = len(set(node_R.tolist())), self.nodes.alive
        if wanted > len(alive):
            raise UserError(
                f"the plan spreads its ranks over {wanted} nodes, but the cluster "
                f"has {len(alive)}; try --simulated-nodes {wanted}"
            )
        ranks_of = Counter(node_R.tolist())
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
            self._start(rank, group, sorted(ranks_of).index(node_R[rank]))
        self.greet(range(self.size))

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
        self.actors[rank] = RemoteShard.options(
            num_cpus=self._cpus, num_gpus=self._gpus, scheduling_strategy=strategy
        ).remote(rank, self.size)
        self.actors[rank].apply.remote(_greet, self.nodes.sender)
        self._home[rank] = (group, bundle)
        self._pids[rank] = 0

    def start(self, ranks: Iterable[int]) -> None:
        """Start ranks again, without waiting for them: in their old place where its node lives,
        otherwise wherever there is room.
        """
        alive = self.nodes.alive
        homeless = [rank for rank in ranks if self.find_node(rank) not in alive]
        for rank in ranks:
            if rank not in homeless:
                self._start(rank, *self._home[rank])
        if homeless:
            group = placement_group([self._share(1)] * len(homeless), strategy="SPREAD")
            self._wait_for(group, f"the {len(homeless)} ranks of the node that was lost")
            for bundle, rank in enumerate(homeless):
                self._start(rank, group, bundle)

    def greet(self, ranks: Iterable[int]) -> None:
        """Wait for ranks that were started, read each one's process and clock, and divide the cores
        of each machine.

        Raises:
            ShardsLostError: if some die meanwhile.
        """
        own_boot = Shard(0, 1).process()[1]
        found = collect_answers(
            {rank: self.actors[rank].process.remote() for rank in ranks}, _START_S
        )
        self._started_on |= {rank: self.find_node(rank) for rank in found}
        self._boots |= {rank: boot for rank, (_, boot) in found.items()}
        for rank, (pid, boot) in found.items():
            self._pids[rank] = pid if boot == own_boot else 0
            self._offset_s[rank] = 0.0 if boot == own_boot else self._clock_offset(rank)
        on_machine = Counter(self._boots.values())
        collect_answers(
            {
                rank: self.actors[rank].use_threads.remote(threads_per_rank(on_machine[boot]))
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
            told_s = ray.get(self.actors[rank].clock_s.remote())
            answered_s = time.perf_counter()
            trips.append((answered_s - asked_s, told_s - (asked_s + answered_s) / 2))
        offset_s: float = min(trips)[1]
        return offset_s

    def find_clock_offset_s(self, rank: int) -> float:
        """Seconds that a rank's clock is ahead of this process's."""
        return self._offset_s[rank]

    def count_neighbours(self, rank: int) -> int:
        """Number of ranks that share the cores of a rank's machine, itself among them."""
        return Counter(self._boots.values())[self._boots[rank]]

    def list_on(self, node: str | None) -> list[int]:
        """Ranks that were started on a node."""
        return [rank for rank in self.actors if self._started_on.get(rank) == node]

    def find_node(self, rank: int) -> str | None:
        """Node that a rank was placed on, by its id; ``None`` where Ray has forgotten it."""
        group, bundle = self._home[rank]
        table = ray.util.placement_group_table(group)
        node: str | None = table["bundles_to_node_id"].get(bundle)
        return node

    def kill(self, rank: int) -> None:
        """Kill a rank's process without notice."""
        if self._pids[rank]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[rank], signal.SIGKILL)
        else:
            ray.kill(self.actors[rank])

    def stop(self, ranks: Iterable[int]) -> None:
        """Kill ranks that are not dead yet, and leave them out until they are started again."""
        for rank in ranks:
            self.kill(rank)
            # Ray would hold the place of an actor that it takes for alive.
            ray.kill(self.actors.pop(rank))
            self._boots.pop(rank, None)

    def close(self) -> None:
        """Stop the actors and release their places, unless the cluster is lost."""
        if self.nodes.is_lost:
            return
        for actor in self.actors.values():
            ray.kill(actor)
        for group in self._groups:
            ray.util.remove_placement_group(group)


# Answers of ranks that are Ray actors, and who of them gives none.


_GRACE_S = 30.0
"""Seconds after a rank's death within which the others report that they miss it. They do so at
once, but on a machine with twice as many busy processes as cores one was seen to need over 10 s."""
_HUNG_GRACE_S = 3.0
"""Seconds after one rank has waited in vain within which the others that waited report it."""


def collect_answers(
    answers: dict[int, Any], timeout_s: float | None, abort: Callable[[], None] = lambda: None
) -> dict[int, Any]:
    """Collect every rank's answer.

    Args:
        answers: references to them, by rank.
        timeout_s: for all of them together; a rank that reports that another did not come does so
            after this time.
        abort: called when a rank has died, so that the others wait no longer for it.

    Raises:
        ShardsLostError: naming the ranks that died, and those that are hung: they answer nothing
            while others have given up.
    """
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
            if died:
                abort()
    if died or complaints or pending:
        hung = {rank_of[answer] for answer in pending}
        raise ShardsLostError(died, hung, complaints, timeout_s)
    return found
