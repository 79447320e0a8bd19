"""All ranks as threads of this process: the backend of tests, and of ``execute`` where ray is not
wanted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from simulator.runtime.faults import Fault
from simulator.runtime.job import Job, Step
from simulator.runtime.shard import Shard, ShardStep, threads_per_rank
from simulator.runtime.transport import PeerLostError
from simulator.runtime.transport.in_process import InProcess


class InProcessBackend:
    """``size`` shards, each in its own thread."""

    def __init__(self, size: int, timeout_s: float = 30.0) -> None:
        self.faults: Sequence[Fault] = ()
        self.attempt_began_s = 0.0
        self.shards = [Shard(rank, size) for rank in range(size)]
        for shard in self.shards:
            shard.use_threads(threads_per_rank(size))
        self._threads = ThreadPoolExecutor(size)
        meeting = InProcess().meeting(size, timeout_s)
        for shard in self.shards:
            shard.join({"kind": "in_process"}, meeting, timeout_s)

    def load(self, job: Job) -> list[int]:
        """Build every rank's part of the model; parameters on each."""
        return [shard.load(job) for shard in self.shards]

    def step(self, step: Step) -> list[ShardStep]:
        """Run a step on all ranks."""
        self.attempt_began_s = time.perf_counter()
        futures = [self._threads.submit(shard.step, step) for shard in self.shards]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:  # what went wrong first, not that the others missed a rank
            raise next(
                (error for error in errors if not isinstance(error, PeerLostError)), errors[0]
            )
        return [future.result() for future in futures]

    def apply(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(shard, *arguments)`` on every rank."""
        return [function(shard, *arguments) for shard in self.shards]

    def close(self) -> None:
        """End the threads."""
        for shard in self.shards:
            shard.close()
        self._threads.shutdown()
