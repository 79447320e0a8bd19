"""Backend with all ranks as threads of this process, for tests and for ``execute`` without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from simulator.base.errors import LostError
from simulator.policies.placement import Placed
from simulator.runtime.backend import Fault, RanksLostError
from simulator.runtime.job import Job, Step
from simulator.runtime.load import Patience
from simulator.runtime.moving import Received
from simulator.runtime.shard import Shard, ShardStep, threads_per_rank
from simulator.runtime.transport import PeerLostError
from simulator.runtime.transport.in_process import InProcess, InProcessTransport

Result = TypeVar("Result")


class InProcessBackend:
    """Backend of ``size`` shards, each in its own thread."""

    def __init__(self, size: int, timeout_s: float = 30.0) -> None:
        self.faults: Sequence[Fault] = ()
        self.attempt_began_s = 0.0
        self.members: list[int] = list(range(size))
        self.shards = [Shard(rank, size) for rank in range(size)]
        """Shards of the members, in their order."""
        self._starting: dict[int, Shard] = {}
        """Shards of ranks that were started again and are no members yet."""
        for shard in self.shards:
            shard.use_threads(threads_per_rank(size))
        self._threads = ThreadPoolExecutor(size)
        self._patience = Patience(timeout_s)
        self._meet()

    def _meet(self) -> None:
        """Form the transport anew over all members."""
        timeout_s = self._patience.least_s
        self._room = InProcess().meeting(len(self.shards), timeout_s)
        for shard in self.shards:
            shard.join({"kind": "in_process"}, self._room, timeout_s)

    def load(self, job: Job) -> list[int]:
        """Build every rank's part of the model. Returns the number of parameters on each."""
        self._patience.forget()
        return [shard.load(job) for shard in self.shards]

    def step(self, step: Step, lose: Collection[int] = ()) -> list[ShardStep]:
        """Run a step on all members.

        Args:
            lose: members that leave the others waiting in the step's second exchange, as if they
                were killed.

        Raises:
            LostError: if a rank kept the others waiting for too long. They cannot meet again.
            RanksLostError: if members were lost on purpose.
        """
        self.attempt_began_s = time.perf_counter()
        timeout_s = self._patience.limit_s(step.kind)
        for rank in lose:
            transport = self.shards[self.members.index(rank)].transport
            assert isinstance(transport, InProcessTransport)
            transport.swaps_left = 2  # behind the barrier that begins a step, and sizes
        try:
            found = self._run_all(lambda shard: shard.step(step, timeout_s), f"step {step.number}")
        except LostError:
            if not lose:
                raise
        if lose:
            self._lose(lose)
            raise RanksLostError(self.attempt_began_s, time.perf_counter())
        self._patience.learn(step.kind, time.perf_counter() - self.attempt_began_s)
        return found

    def _lose(self, ranks: Collection[int]) -> None:
        kept = [
            (rank, shard)
            for rank, shard in zip(self.members, self.shards, strict=True)
            if rank not in ranks
        ]
        self.members, self.shards = [rank for rank, _ in kept], [shard for _, shard in kept]

    def regroup(
        self, job: Job, members: Sequence[int], number: int, *, anew: bool = False
    ) -> list[int]:
        """Let some ranks go on together. Returns the bytes of experts that each loaded into the
        model that it had.

        Args:
            number: of the step that was running.
            anew: whether all ranks are started anew.
        """
        there = {} if anew else dict(zip(self.members, self.shards, strict=True)) | self._starting
        self._starting = {} if anew else self._starting
        for rank in members:
            self._starting.pop(rank, None)
        self.members = list(members)
        self.shards = [there.get(rank) or Shard(rank, len(members)) for rank in members]
        for shard in self.shards:
            shard.use_threads(threads_per_rank(len(members)))
        self._patience.forget()
        loaded = [shard.regroup(rank, len(members), job) for rank, shard in enumerate(self.shards)]
        self._meet()
        return loaded

    def start(self, ranks: Collection[int], job: Job) -> None:
        """Start ranks again that were lost, and let them load a job's weights; they are no members
        yet.
        """
        for rank in ranks:
            self._starting[rank] = Shard(rank, job.layout.num_ranks)
            self._starting[rank].load(job)

    def have_started(self, ranks: Collection[int]) -> bool:
        """Whether ranks that were started are ready to join."""
        return all(rank in self._starting for rank in ranks)

    def place_experts(self, placed: Placed, number: int) -> list[Received]:
        """Move the experts of all ranks to where another placement has them. Returns what each rank
        got from others.

        Args:
            number: of the step before, for records of faults.

        Raises:
            LostError: if a rank kept the others waiting for too long. They cannot meet again.
        """
        return self._run_all(lambda shard: shard.place_experts(placed), "a move of experts")

    def _run_all(self, run: Callable[[Shard], Result], what: str) -> list[Result]:
        """Run all ranks at the same time.

        Raises:
            LostError: if one kept the others waiting for too long, naming ``what`` failed.
        """

        def run_one(shard: Shard) -> Result:
            try:
                return run(shard)
            except BaseException:
                self._room.abort()  # the others need not wait for a rank that will not come
                raise

        futures = [self._threads.submit(run_one, shard) for shard in self.shards]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:  # what went wrong first, not that the others missed a rank
            if not isinstance(error, PeerLostError):
                raise error
        if errors:
            raise LostError(
                f"{what} failed: a rank kept the others waiting for too long; raise "
                "execution.timeout_s if it happens again"
            ) from errors[0]
        return [future.result() for future in futures]

    def apply(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(shard, *arguments)`` on every rank at once.

        Raises:
            LostError: if a rank kept the others waiting for too long.
        """
        return self._run_all(lambda shard: function(shard, *arguments), "a call of all ranks")

    def close(self) -> None:
        """End the threads."""
        for shard in self.shards:
            shard.close()
        self._threads.shutdown()
