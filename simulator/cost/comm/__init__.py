"""How long ranks take to exchange data. One cost model a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.spec.calibration import Calibration
from simulator.spec.host import HostRates
from simulator.topology import Fabric

Operation = Literal["dispatch", "combine", "all_reduce"]


@dataclass(frozen=True)
class Exchange:
    """One collective, priced: a latency, then seconds of work for every link."""

    latency_s: float
    busy_s: NDArray[np.float64]
    """``[links]``: seconds that each link needs for its bytes when nothing else uses it."""
    bytes_SR: NDArray[np.float64]
    """``[R, R]``: bytes from each rank to each other one."""
    stagger_s: float = 0.0
    """What ranks with equal work wait for the last of them, by chance."""

    @classmethod
    def nothing(cls) -> Exchange:
        """No data, no time."""
        return cls(0.0, np.zeros(0), np.zeros((0, 0)))

    @property
    def alone_s(self) -> float:
        """Time of the exchange when it has the links to itself: waiting for the last rank, latency, and the busiest link."""
        return self.stagger_s + self.latency_s + (float(self.busy_s.max()) if self.busy_s.size else 0.0)


class CommModel(Protocol):
    """A communication policy made ready for one fabric."""

    def exchange(self, operation: Operation, bytes_SR: NDArray[np.float64]) -> Exchange:
        """Rank ``s`` sends ``bytes_SR[s, r]`` to rank ``r``, all at once."""
        ...

    def all_reduce(self, num_bytes: float, ranks: tuple[int, ...]) -> Exchange:
        """Sum ``num_bytes`` over a group of ranks, the result on each."""
        ...

    def link_bytes_per_s(self, operation: Operation) -> NDArray[np.float64]:
        """Achieved rate of every link for one operation, ``[links]``."""
        ...

    def latency_s(self, operation: Operation, num_nodes: int, num_ranks: int) -> float:
        """Latency of one operation."""
        ...


class CommPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def prepare(self, fabric: Fabric, calibration: Calibration | HostRates) -> CommModel:
        """Price exchanges on ``fabric``.

        Raises:
            UserError: if the calibration is of another kind than this model needs.
        """
        ...
