"""Arrival processes of requests, one in a file."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen


class ArrivalProcess(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    @property
    def concurrency(self) -> int | None:
        """Requests kept in flight by a closed loop; ``None`` for open-loop processes. Fields
        ``start``, ``send_s`` and ``judge_ramp`` of
        :class:`~simulator.workload.arrivals.closed_loop.ClosedLoop` are read where there are any.
        """
        ...

    def arrival_s(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw sorted arrival times in seconds of ``num_requests`` requests, the first at its own
        gap from 0.
        """
        ...


class OpenLoop(Frozen):
    """Base of processes whose requests arrive by the clock, however many are in flight."""

    @property
    def concurrency(self) -> int | None:
        """Requests kept in flight: ``None``, since nothing bounds them."""
        return None
