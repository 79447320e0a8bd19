"""Collectives of a library: the time of a message by its size and the number of ranks, as the
fastest of a few protocols.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import Extent, Factor, Seconds
from simulator.config.calibration.fit import Fit

Floats = NDArray[np.float64]
Algorithm = Literal["ring", "in_switch", "one_shot"]
PASSES = {"all_reduce": 2.0}
"""Times that a message goes round a ring; once where not given: reducing and handing out are a pass
each."""


def wire_share(algorithm: Algorithm, num_ranks: ArrayLike) -> Floats:
    """Bytes on a rank's port for each byte of the message in one pass.

    ``ring``: each rank passes ``(n - 1) / n`` of it on (Patarasuk and Yuan 2009). ``in_switch``:
    the switch adds up and sends out (NVLink SHARP), each rank sends and gets ``(1 + 1 / n) / 2``.
    ``one_shot``: each rank reads half of every other one's, so that an all-reduce of two passes
    reads all.
    """
    n = np.maximum(np.asarray(num_ranks, dtype=float), 1.0)
    shares = {"ring": 1.0 - 1.0 / n, "in_switch": 0.5 + 0.5 / n, "one_shot": (n - 1.0) / 2.0}
    return np.asarray(shares[algorithm], dtype=np.float64)


class ProtocolFit(Frozen):
    """Time of a collective by one protocol: ``latency + bytes / rate``."""

    algorithm: Algorithm = "ring"
    """Way that the message takes: round a ring, through a switch that adds up, or read at once by
    every rank."""
    latency_s: Seconds
    """Seconds of the smallest message between two ranks."""
    latency_per_rank_s: Seconds = 0.0
    """Seconds added for each further rank."""
    fraction: Factor
    """Achieved share of the port's peak, for the bytes that the algorithm sends."""
    copy_fraction: Factor | None = None
    """Achieved share of the port's peak for copies of the message in and out of buffers, whatever
    the number of ranks; absent = hidden."""

    max_bytes_times_ranks: Extent | None = None
    """Largest message in bytes, times the number of ranks, that the library uses the protocol for
    between more than two ranks; absent = any."""

    def start_s(self, num_ranks: ArrayLike) -> Floats:
        """Latency inside one fast domain."""
        further = np.maximum(np.asarray(num_ranks, dtype=float) - 2.0, 0.0)
        return np.asarray(self.latency_s + self.latency_per_rank_s * further, dtype=np.float64)

    def per_byte_s(self, num_ranks: ArrayLike, passes: float, bytes_per_s: ArrayLike) -> Floats:
        """Seconds of each byte of the message inside one fast domain."""
        per_byte = passes * wire_share(self.algorithm, num_ranks) / self.fraction
        per_byte = per_byte + (0.0 if self.copy_fraction is None else 1.0 / self.copy_fraction)
        return np.asarray(per_byte / np.asarray(bytes_per_s), dtype=np.float64)

    def is_used(self, num_bytes: ArrayLike, num_ranks: ArrayLike) -> NDArray[np.bool_]:
        """Whether the library considers it for messages of a size."""
        size, ranks = np.asarray(num_bytes, dtype=float), np.asarray(num_ranks, dtype=float)
        limit = np.inf if self.max_bytes_times_ranks is None else self.max_bytes_times_ranks
        return np.asarray((ranks <= 2) | (size * ranks < limit))


class CollectiveFit(Fit):
    """Time of one collective operation of one library."""

    protocols: Annotated[dict[str, ProtocolFit], Field(min_length=1)]
    """Protocols by name; the fastest one that is used is taken, as the library's tuner means to.
    One of them must have no limit."""
    scale_out_latency_s: Seconds = 0.0
    """Seconds of a step between the nearest ranks of two domains."""
    latency_per_doubling_s: Seconds = 0.0
    """Seconds added for each doubling of the number of domains."""
    scale_out_fraction: Factor | None = None
    """Achieved share of the wire's peak between domains; absent = the library works inside one
    domain only."""
    eager_s: Seconds = 0.0
    """Shortest time in seconds when launched from Python and not by a captured graph."""
    eager_more_s: Seconds = 0.0
    """Seconds added to the kernel's time when launched from Python, beside a copy of the message
    into a buffer that the other ranks can read."""

    @model_validator(mode="after")
    def _answers_every_size(self) -> Self:
        if all(way.max_bytes_times_ranks is not None for way in self.protocols.values()):
            raise ValueError("protocols: one must be without max_bytes_times_ranks")
        return self

    def parts_s(
        self, num_bytes: ArrayLike, num_ranks: ArrayLike, passes: float, bytes_per_s: ArrayLike
    ) -> tuple[Floats, Floats]:
        """Latency, and time of the bytes, of the fastest protocol inside one domain. Sizes and
        ranks broadcast together.

        Args:
            passes: times that the message goes round (:data:`PASSES`).
            bytes_per_s: peak of a rank's port.
        """
        size = np.asarray(num_bytes, dtype=float)
        starts, carries = [], []
        for way in self.protocols.values():
            start, carry = np.broadcast_arrays(
                way.start_s(num_ranks), size * way.per_byte_s(num_ranks, passes, bytes_per_s)
            )
            starts.append(np.where(way.is_used(size, num_ranks), start, np.inf))
            carries.append(carry)
        start_P, carry_P = np.stack(starts), np.stack(carries)
        best = np.argmin(start_P + carry_P, axis=0)[None]
        return np.take_along_axis(start_P, best, axis=0)[0], np.take_along_axis(
            carry_P, best, axis=0
        )[0]

    def eager_launch_s(
        self, graph_s: ArrayLike, num_bytes: ArrayLike, memory_bytes_per_s: float
    ) -> Floats:
        """Seconds when launched from Python: the message is first copied, read once and written
        once.
        """
        copy_s = 2.0 * np.asarray(num_bytes, dtype=float) / memory_bytes_per_s
        return np.maximum(self.eager_s, np.asarray(graph_s) + self.eager_more_s + copy_s)


def passes_of(operation: str) -> float:
    """Times that a message goes round: an all-reduce adds up and hands out."""
    return PASSES.get(operation, 1.0)
