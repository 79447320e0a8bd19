"""Transports between shards, one in a file; a scenario's ``execution.transport`` names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:  # catalogues read this folder where there is no torch
    from torch import Tensor


class PeerLostError(Exception):
    """Error that an exchange could not be finished: another rank is lost, or did not
    come in time.
    """


class Transport(Protocol):
    """One rank's end of a transport. Every rank of a group calls the same operations in the same
    order.
    """

    def all_to_all(
        self, send: Tensor, send_rows_R: list[int], receive_rows_R: list[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Send rows to every rank and receive rows from every rank.

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
        """Sum over the ranks; ``x`` may be changed."""
        ...

    def barrier(self) -> None:
        """Wait for every rank."""
        ...

    def wait_at_most(self, timeout_s: float) -> None:
        """Set the seconds after which another rank counts as missing."""
        ...

    def close(self) -> None:
        """Leave, whatever the others do."""
        ...


class Meeting(Protocol):
    """Meeting point of the ranks, which the driver keeps alive while they use it."""

    @property
    def address(self) -> Any:
        """Address that each rank needs to find the others."""
        ...

    def abort(self) -> None:
        """Let no rank wait for one that is lost, if possible."""
        ...


class TransportPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    joins_processes: ClassVar[bool]
    """Whether its ranks may be processes, on one machine or several."""

    def meeting(self, size: int, timeout_s: float, host: str) -> Meeting:
        """Prepare a meeting point for the ranks, in the driver's process. Called again after every
        failure.

        Args:
            host: address of this machine by which the ranks reach it.
        """
        ...

    def connect(self, address: Any, rank: int, size: int, timeout_s: float) -> Transport:
        """Join the others, in the rank's own process.

        Raises:
            PeerLostError: if they do not come.
        """
        ...
