"""Cost models of communication between ranks, one in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from simulator.base.arrays import Floats
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.host import HostRates
from simulator.policies.messages import Messages
from simulator.policies.topology import Fabric

Operation = Literal["dispatch", "combine", "all_reduce"]


@dataclass(frozen=True)
class Exchange:
    """Price of one collective operation: a latency, then seconds of work for every link."""

    latency_s: float
    """Seconds before the first byte arrives."""
    busy_s: Floats
    """Seconds that each link needs for its bytes when nothing else uses it, ``[links]``."""
    sent: Messages
    """Bytes from rank to rank."""
    stagger_s: float = 0.0
    """Mean seconds that ranks with equal work wait for the last of them, by chance."""
    held_s: float = 0.0
    """Seconds for which the exchange's kernels keep the whole GPU from computing something that
    overlaps it."""
    is_direct: bool = False
    """Whether each message leaves by its sender's own card
    (:attr:`simulator.policies.topology.Fabric.direct`)."""

    @classmethod
    def empty(cls) -> Exchange:
        """Make an exchange without data, which takes no time."""
        return cls(0.0, np.zeros(0), Messages.empty())

    @property
    def bytes_SR(self) -> Floats:
        """Bytes from each rank to each other one, ``[R, R]``."""
        return self.sent.matrix_SR

    @property
    def alone_s(self) -> float:
        """Seconds of the exchange when no other uses the links: waiting for the last rank, latency,
        and the busiest link.
        """
        return (
            self.stagger_s
            + self.latency_s
            + (float(self.busy_s.max()) if self.busy_s.size else 0.0)
        )


class Vectors(NamedTuple):
    """Contents of a dispatch or combine: tokens' hidden vectors, and the kernels that move them."""

    kernels: str
    """Name of the calibrated kernels: ``low_latency``, ``normal``, ..., or ``collective``."""
    vector_bytes: float
    """Bytes of one hidden vector."""
    tokens_R: Floats
    """Tokens that each rank sends, or gets back, ``[R]``."""
    num_experts: int
    """Expert slots on all ranks."""


class CommModel(Protocol):
    """Communication policy prepared for one fabric."""

    def exchange(
        self, operation: Operation, sent: Messages, vectors: Vectors | None = None
    ) -> Exchange:
        """Price ranks that send each other bytes, all at once.

        Args:
            vectors: what the bytes are; without it only the links and the latency count.

        Raises:
            UserError: if the calibration knows no such kernels.
        """
        ...

    def exchanges(
        self, operation: Operation, sent_X: Sequence[Messages], vectors: Vectors
    ) -> list[Exchange]:
        """Price many exchanges of the same tokens: :meth:`exchange` of each."""
        ...

    def all_reduce(self, num_bytes: float, ranks: tuple[int, ...]) -> Exchange:
        """Price the sum of ``num_bytes`` over a group of ranks, with the result on each."""
        ...

    def all_reduces_s(self, num_bytes: Floats, ranks: tuple[int, ...]) -> Floats:
        """Seconds of many all-reduces, each without others on the links:
        ``all_reduce(...).alone_s`` for all sizes at once.
        """
        ...


class CommPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def prepare(
        self, fabric: Fabric, calibration: Calibration | HostRates, accelerator: AcceleratorSpec
    ) -> CommModel:
        """Prepare to price exchanges on ``fabric``, whose ranks are GPUs like ``accelerator``.

        Raises:
            UserError: if the calibration is of another kind than this model needs.
        """
        ...
