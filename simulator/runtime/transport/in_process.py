"""Transport between threads of one process: for tests, and for machines without Ray."""

from __future__ import annotations

import contextlib
import threading
from typing import ClassVar

from torch import Tensor

from simulator.base.frozen import Frozen
from simulator.runtime.transport import PeerLostError
from simulator.runtime.transport._swap import SwapTransport


class Room:
    """Meeting point of the threads."""

    @property
    def address(self) -> Room:
        """Meeting point itself: nothing has to be sent."""
        return self

    def abort(self) -> None:
        """Let no thread wait any longer."""
        self.barrier.abort()

    def __init__(self, size: int, timeout_s: float) -> None:
        self.barrier = threading.Barrier(size, timeout=timeout_s)
        self.given: list[list[Tensor]] = [[] for _ in range(size)]


class InProcess(Frozen):
    """Transport that hands tensors over in memory, without a copy."""

    joins_processes: ClassVar[bool] = False

    def meeting(self, size: int, timeout_s: float, host: str = "") -> Room:
        return Room(size, timeout_s)

    def connect(self, address: Room, rank: int, size: int, timeout_s: float) -> InProcessTransport:
        return InProcessTransport(address, rank, size)


class InProcessTransport(SwapTransport):
    """One thread's end of the transport."""

    def __init__(self, room: Room, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.room = room
        self._timeout_s: float | None = None
        self.swaps_left: int | None = None
        """Swaps until this rank is lost, as if its process were killed; ``None`` = never."""

    def wait_at_most(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def swap(self, give_R: list[Tensor]) -> list[Tensor]:
        if self.swaps_left is not None:
            if self.swaps_left == 0:
                self.room.abort()  # as connections to a process break that is killed
                raise PeerLostError(f"rank {self.rank} was lost on purpose")
            self.swaps_left -= 1
        try:
            if self.room.barrier.broken:
                raise threading.BrokenBarrierError
            self.room.given[self.rank] = give_R
            self.room.barrier.wait(self._timeout_s)
        except threading.BrokenBarrierError:
            raise PeerLostError(
                f"rank {self.rank}: another rank failed or did not come in time"
            ) from None
        received = [given[self.rank] for given in self.room.given]
        with contextlib.suppress(
            threading.BrokenBarrierError
        ):  # all have come; one that has left since takes nothing away
            self.room.barrier.wait()
        return received

    def close(self) -> None:
        self.room.barrier.abort()
