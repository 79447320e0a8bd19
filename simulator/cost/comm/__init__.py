"""How long ranks take to exchange data. One cost model a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.host import HostRates
from simulator.policies.messages import Messages
from simulator.policies.topology import Fabric

Operation = Literal["dispatch", "combine", "all_reduce"]


@dataclass(frozen=True)
class Exchange:
    """One collective, priced: a latency, then seconds of work for every link."""

    latency_s: float
    busy_s: NDArray[np.float64]
    """``[links]``: seconds that each link needs for its bytes when nothing else uses it."""
    sent: Messages
    """Bytes from rank to rank."""
    stagger_s: float = 0.0
    """What ranks with equal work wait for the last of them, by chance."""
    held_s: float = 0.0
    """How long its kernels keep a GPU from computing something else that overlaps it, in seconds of
    the whole GPU."""
    is_direct: bool = False
    """Whether each message leaves by its sender's own card
    (:attr:`simulator.policies.topology.Fabric.direct`)."""

    @classmethod
    def nothing(cls) -> Exchange:
        """No data, no time."""
        return cls(0.0, np.zeros(0), Messages.none())

    @property
    def bytes_SR(self) -> NDArray[np.float64]:
        """Bytes from each rank to each other one, ``[R, R]``."""
        return self.sent.matrix_SR

    @property
    def alone_s(self) -> float:
        """Time of the exchange when it has the links to itself: waiting for the last rank, latency,
        and the busiest link.
        """
        return (
            self.stagger_s
            + self.latency_s
            + (float(self.busy_s.max()) if self.busy_s.size else 0.0)
        )


class Vectors(NamedTuple):
    """What the bytes of a dispatch or combine are: tokens' hidden vectors, moved by certain
    kernels.
    """

    kernels: str
    """Which constants of the calibration hold: ``low_latency``, ``normal``, ..., or
    ``collective``."""
    vector_bytes: float
    tokens_R: NDArray[np.float64]
    """``[R]``: tokens that each rank sends away, or gets back."""
    num_experts: int
    """Slots of experts on all ranks."""


class CommModel(Protocol):
    """A communication policy made ready for one fabric."""

    def exchange(
        self, operation: Operation, sent: Messages, vectors: Vectors | None = None
    ) -> Exchange:
        """Ranks send each other bytes, all at once.

        Args:
            vectors: what the bytes are; without it only the wires and the latency count.

        Raises:
            UserError: if the calibration knows no such kernels.
        """
        ...

    def exchanges(
        self, operation: Operation, sent_X: Sequence[Messages], vectors: Vectors
    ) -> list[Exchange]:
        """:meth:`exchange` for each of many exchanges of the same tokens."""
        ...

    def all_reduce(self, num_bytes: float, ranks: tuple[int, ...]) -> Exchange:
        """Sum ``num_bytes`` over a group of ranks, the result on each."""
        ...

    def all_reduces_s(
        self, num_bytes: NDArray[np.float64], ranks: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """Time of each of many all-reduces that have the links to themselves:
        ``all_reduce(...).alone_s``, at once.
        """
        ...

    def latency_s(self, operation: Operation, num_nodes: int, num_ranks: int) -> float:
        """Latency of one operation."""
        ...


class CommPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def prepare(
        self, fabric: Fabric, calibration: Calibration | HostRates, accelerator: AcceleratorSpec
    ) -> CommModel:
        """Price exchanges on ``fabric``, whose ranks are GPUs like ``accelerator``.

        Raises:
            UserError: if the calibration is of another kind than this model needs.
        """
        ...
