"""How shards exchange data. One transport a file; a scenario's ``execution.transport`` names it."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor


class PeerLostError(Exception):
    """An exchange could not be finished: another rank is gone, or did not come in time."""


class Transport(Protocol):
    """One rank's end. Every rank of a group calls the same operations in the same order."""

    def all_to_all(
        self, send: Tensor, send_rows_R: list[int], receive_rows_R: list[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Rows to every rank and from every rank.

        Args:
            send: ``[N, ...]``, in the order of the ranks the rows go to.
            receive_rows_R: rows from each rank where that is known already; otherwise it is
                exchanged first.

        Returns:
            The rows received, in the order of the ranks they come from, and how many came from
            each.

        Raises:
            PeerLostError: if another rank is gone or does not come; so may every operation.
        """
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks; ``x`` may be changed."""
        ...

    def barrier(self) -> None:
        """Wait for every rank."""
        ...

    def wait_at_most(self, timeout_s: float) -> None:
        """From here on, another rank is missed after so long."""
        ...

    def close(self) -> None:
        """Leave, whatever the others do."""
        ...


class Meeting(Protocol):
    """What the driver keeps alive while the ranks use it."""

    @property
    def address(self) -> Any:
        """What each rank is sent to find the others."""
        ...

    def abort(self) -> None:
        """A rank is gone: let nobody wait for it, if that can be helped."""
        ...


class TransportPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    joins_processes: ClassVar[bool]
    """Whether its ranks may be processes, on one machine or several."""

    def meeting(self, size: int, timeout_s: float) -> Meeting:
        """Prepare a place for the ranks to meet, in the driver's process. Called again after every
        failure.
        """
        ...

    def connect(self, address: Any, rank: int, size: int, timeout_s: float) -> Transport:
        """Join the others, in the rank's own process.

        Raises:
            PeerLostError: if they do not come.
        """
        ...
