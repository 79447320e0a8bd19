"""Transport through Ray's object store, where no process group can form. Slower: every exchange
asks an actor for the others' rows.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from torch import Tensor

from simulator.base.frozen import Frozen
from simulator.runtime.transport import PeerLostError
from simulator.runtime.transport._swap import SwapTransport

_PATIENCE_S = 5.0
"""Seconds beyond a rank's own timeout after which a switchboard that does not answer is given up;
normally it reports missing ranks itself."""


class ObjectStore(Frozen):
    """Transport whose rows lie in the object store of the node that has them, and are fetched by
    the node that needs them.
    """

    joins_processes: ClassVar[bool] = True

    def meeting(self, size: int, timeout_s: float, host: str = "") -> Desk:
        return Desk(size)

    def connect(self, address: Any, rank: int, size: int, timeout_s: float) -> ObjectStoreTransport:
        return ObjectStoreTransport(address, rank, size, timeout_s)


class Desk:
    """Driver's end: owner of the switchboard."""

    def __init__(self, size: int) -> None:
        self.address = ray.remote(Switchboard).options(num_cpus=0).remote(size)

    def abort(self) -> None:
        """Let no rank wait any longer."""
        ray.kill(self.address)


class Switchboard:
    """Actor that tells every rank where the others' rows lie, once all have arrived."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._given: dict[int, dict[int, list[Any]]] = {}
        self._is_full: dict[int, asyncio.Event] = {}
        self._num_taken: dict[int, int] = {}

    async def swap(
        self, number: int, rank: int, references_R: list[Any], timeout_s: float
    ) -> list[Any]:
        """References that each rank gave to ``rank`` in exchange ``number``.

        Raises:
            TimeoutError: if some ranks do not come; they are named.
        """
        given = self._given.setdefault(number, {})
        is_full = self._is_full.setdefault(number, asyncio.Event())
        given[rank] = references_R
        if len(given) == self.size:
            is_full.set()
        try:
            await asyncio.wait_for(is_full.wait(), timeout_s)
        except TimeoutError:
            missing = ", ".join(str(other) for other in range(self.size) if other not in given)
            raise TimeoutError(f"rank {missing} did not come within {timeout_s:g} s") from None
        found = [given[other][rank] for other in range(self.size)]
        self._num_taken[number] = self._num_taken.get(number, 0) + 1
        if self._num_taken[number] == self.size:
            del self._given[number], self._is_full[number], self._num_taken[number]
        return found


class ObjectStoreTransport(SwapTransport):
    """One actor's end of the transport."""

    def __init__(self, switchboard: Any, rank: int, size: int, timeout_s: float) -> None:
        super().__init__(rank, size)
        self._switchboard, self._timeout_s = switchboard, timeout_s
        self._number = 0
        self._kept: list[list[Any]] = []

    def wait_at_most(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def swap(self, give_R: list[Tensor]) -> list[Tensor]:
        references = [ray.put(tensor.cpu()) for tensor in give_R]
        # The others fetch these while this rank is in its next exchange already, and nobody is
        # behind that.
        self._kept = [*self._kept[-1:], references]
        self._number += 1
        try:
            answer = self._switchboard.swap.remote(
                self._number, self.rank, references, self._timeout_s
            )
            theirs = ray.get(answer, timeout=self._timeout_s + _PATIENCE_S)
            received: list[Tensor] = ray.get(theirs, timeout=self._timeout_s)
        except (RayError, GetTimeoutError) as error:
            raise PeerLostError(
                f"rank {self.rank}, swap: {str(error).strip().splitlines()[-1]}"
            ) from None
        return [tensor.to(give_R[0].device) for tensor in received]
