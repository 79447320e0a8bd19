"""Collectives of a library, and exchanges of tokens with their experts."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from simulator.base.arrays import Bools, Floats
from simulator.base.frozen import Frozen, PairOf
from simulator.base.quantities import Amount, Exponent, Extent, Factor, MultiprocessorCount, Seconds
from simulator.config.calibration.fit import Fit

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

    def is_used(self, num_bytes: ArrayLike, num_ranks: ArrayLike) -> Bools:
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
    """Achieved share of the link's peak between domains; absent = the library works inside one
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


class Load(NamedTuple):
    """Load of one exchange, seen from its busiest rank. Numbers, or arrays of exchanges that
    broadcast together.
    """

    tokens: ArrayLike
    """Tokens of the rank that it sends away, or that it gets back."""
    copies: ArrayLike
    """Vectors that its multiprocessors send, over any link."""
    crossing: ArrayLike
    """Vectors among ``copies`` that leave the fast domain."""
    vector_bytes: ArrayLike
    """Bytes of one vector as it travels, scales included."""
    num_experts: ArrayLike
    """Experts of the layer that have a buffer of their own: copies of replicated ones count."""
    num_nodes: ArrayLike
    """Fast domains that the ranks lie in."""


class ExchangeFit(Fit):
    """Latency, then copying by multiprocessors and carrying by links, which hide behind each other.

    ``latency + (copying^overlap + links^overlap)^(1 / overlap)``. Copying is the busiest rank's
    work in multiprocessor-seconds over the multiprocessors that the kernels hold; links are the
    busiest link's bytes over the achieved share of its peak.
    """

    latency_s: Seconds
    """Seconds of an exchange with nothing to carry, inside one fast domain."""
    latency_per_byte_s: Seconds = 0.0
    """Seconds added for each byte of a vector: the first one's way through the kernel."""
    latency_per_expert_s: Seconds = 0.0
    """Seconds added for each expert: kernels that keep one buffer and one counter an expert look at
    each."""
    scale_out_latency_s: Seconds
    """Seconds of an exchange with nothing to carry across domains, as far as they do not depend on
    the number of domains."""
    latency_per_doubling_s: Seconds
    """Seconds added for each doubling of the number of domains."""
    notify_s: Seconds = 0.0
    """Seconds of announcing across domains how much will come, before anything is sent."""
    notify_per_doubling_s: Seconds = 0.0
    """Seconds added to the announcement for each doubling of the number of domains."""
    notify_token_s: Seconds = 0.0
    """Multiprocessor-seconds of one token in the walk over what was sent, before results come
    back."""
    notify_fraction: Amount = 0.0
    """Share of the time on the links that ranks wait for each other's announcements."""
    notify_band: PairOf[Factor] | None = None
    """10th and 90th percentile of the ratio measured over predicted time of the announcement;
    absent = that of the transfer, wider."""
    token_s: Seconds = 0.0
    """Multiprocessor-seconds of one token."""
    token_byte_s: Seconds = 0.0
    """Multiprocessor-seconds of one byte of each token."""
    copy_s: Seconds = 0.0
    """Multiprocessor-seconds of one vector that is sent."""
    copy_byte_s: Seconds = 0.0
    """Multiprocessor-seconds of one byte that is sent."""
    forward_byte_s: Seconds = 0.0
    """Multiprocessor-seconds added for one byte of each token where there are several domains:
    kernels that forward do more for every token."""
    crossing_byte_s: Seconds = 0.0
    """Multiprocessor-seconds added for one byte that leaves the domain and is forwarded there."""
    num_sms: MultiprocessorCount
    """Multiprocessors that the kernels hold; 0 = as many as the GPU has, an equal number of experts
    to each (low latency)."""
    overlap: Exponent = 3.0
    """Exponent that combines copying and links: 1 = one after the other; large = the longer hides
    the shorter."""
    floor_s: Seconds = 0.0
    """Shortest time in seconds as engines launch it without captured graphs; serving from captured
    graphs does not pay it."""
    scale_up_fraction: Factor
    """Achieved share of the link's peak inside a domain."""
    scale_out_fraction: Factor
    """Achieved share of the link's peak between domains."""

    def start_s(self, load: Load) -> Floats:
        """Latency of the transfer: what it takes with nothing to carry."""
        nodes = np.asarray(load.num_nodes, dtype=float)
        inside = self.latency_s + self.latency_per_byte_s * np.asarray(load.vector_bytes)
        inside = inside + self.latency_per_expert_s * np.asarray(load.num_experts)
        across = self.scale_out_latency_s + self.latency_per_doubling_s * doublings(nodes)
        return np.asarray(np.where(nodes > 1, across, inside), dtype=np.float64)

    def copying_s(
        self, load: Load, num_multiprocessors: ArrayLike, num_sms: ArrayLike = 0
    ) -> Floats:
        """Seconds that the multiprocessors of the busiest rank copy.

        Args:
            num_multiprocessors: of the GPU.
            num_sms: what the kernels hold, where it is known to differ; 0 = as in the fit.
        """
        tokens, copies, crossing, vector_bytes, _, nodes = (
            np.asarray(one, dtype=float) for one in load
        )
        forwards = np.where(nodes > 1, self.forward_byte_s, 0.0) * tokens
        work = tokens * (self.token_s + self.token_byte_s * vector_bytes)
        work = work + copies * (self.copy_s + self.copy_byte_s * vector_bytes)
        work = work + (crossing * self.crossing_byte_s + forwards) * vector_bytes
        held = self._count_held(load, num_multiprocessors, num_sms)
        return np.asarray(work / held, dtype=np.float64)

    def overlapped_s(self, copying_s: ArrayLike, wires_s: ArrayLike) -> Floats:
        """Copying and links together."""
        copying, wires = np.asarray(copying_s, dtype=float), np.asarray(wires_s, dtype=float)
        longer = np.maximum(np.maximum(copying, wires), 1e-30)
        total = longer * (
            (copying / longer) ** self.overlap + (wires / longer) ** self.overlap
        ) ** (1.0 / self.overlap)
        return np.asarray(total, dtype=np.float64)

    def announce_s(
        self,
        load: Load,
        carrying_s: ArrayLike,
        num_multiprocessors: ArrayLike,
        num_sms: ArrayLike = 0,
    ) -> Floats:
        """Telling how much will come, across domains. Arguments as of :meth:`copying_s`."""
        nodes = np.asarray(load.num_nodes, dtype=float)
        told = (
            self.notify_s
            + self.notify_per_doubling_s * doublings(nodes)
            + self.notify_fraction * np.asarray(carrying_s)
        )
        walked = (
            self.notify_token_s
            * np.asarray(load.tokens, dtype=float)
            / self._count_held(load, num_multiprocessors, num_sms)
        )
        return np.asarray(np.where(nodes > 1, told + walked, 0.0), dtype=np.float64)

    def _count_held(self, load: Load, num_multiprocessors: ArrayLike, num_sms: ArrayLike) -> Floats:
        """Multiprocessors that the kernels hold."""
        usual = self.num_sms or count_multiprocessors(load.num_experts, num_multiprocessors)
        return np.where(np.asarray(num_sms) > 0, num_sms, usual)


def count_multiprocessors(num_experts: ArrayLike, num_multiprocessors: ArrayLike) -> Floats:
    """Multiprocessors of a kernel that gives each the same whole number of experts.

    >>> count_multiprocessors([8, 128, 160, 256], 132).tolist()
    [8.0, 128.0, 80.0, 128.0]
    """
    experts = np.maximum(np.asarray(num_experts, dtype=float), 1.0)
    return np.asarray(
        np.ceil(experts / np.ceil(experts / np.asarray(num_multiprocessors))), dtype=np.float64
    )


def doublings(number: ArrayLike) -> Floats:
    """Number of times that 1 is doubled to reach ``number``.

    >>> doublings([1, 2, 3, 8]).tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    exact = np.log2(np.maximum(np.asarray(number, dtype=float), 1.0))
    return np.asarray(np.ceil(exact - 1e-9) + 0.0, dtype=np.float64)  # never a negative zero
