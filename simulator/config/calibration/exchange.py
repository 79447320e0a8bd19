"""Tokens to experts and back: what the kernels that carry them take."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from simulator.base.quantities import Amount, Exponent, Factor, MultiprocessorCount, Seconds
from simulator.config.calibration.fit import Fit

Floats = NDArray[np.float64]


class Load(NamedTuple):
    """Load of one exchange, seen from its busiest rank. Numbers, or arrays of exchanges that
    broadcast together.
    """

    tokens: ArrayLike
    """Tokens of the rank that it sends away, or that it gets back."""
    copies: ArrayLike
    """Vectors that its multiprocessors send, over any wire."""
    crossing: ArrayLike
    """Vectors among ``copies`` that leave the fast domain."""
    vector_bytes: ArrayLike
    """Bytes of one vector as it travels, scales included."""
    num_experts: ArrayLike
    """Experts of the layer that have a buffer of their own: copies of replicated ones count."""
    num_nodes: ArrayLike
    """Fast domains that the ranks lie in."""


class ExchangeFit(Fit):
    """Latency, then copying by multiprocessors and carrying by wires, which hide behind each other.

    ``latency + (copying^overlap + wires^overlap)^(1 / overlap)``. Copying is the busiest rank's
    work in multiprocessor-seconds over the multiprocessors that the kernels hold; wires are the
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
    """Share of the time on the wires that ranks wait for each other's announcements."""
    notify_band: Annotated[tuple[Factor, Factor], Field(strict=False)] | None = None
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
    """Exponent that combines copying and wires: 1 = one after the other; large = the longer hides
    the shorter."""
    floor_s: Seconds = 0.0
    """Shortest time in seconds as engines launch it without captured graphs; serving from captured
    graphs does not pay it."""
    scale_up_fraction: Factor
    """Achieved share of the wire's peak inside a domain."""
    scale_out_fraction: Factor
    """Achieved share of the wire's peak between domains."""

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
        vector_bytes, copies = (
            np.asarray(load.vector_bytes, dtype=float),
            np.asarray(load.copies, dtype=float),
        )
        held = self._count_held(load, num_multiprocessors, num_sms)
        work = np.asarray(load.tokens, dtype=float) * (
            self.token_s + self.token_byte_s * vector_bytes
        )
        work = work + copies * (self.copy_s + self.copy_byte_s * vector_bytes)
        forwards = np.where(
            np.asarray(load.num_nodes, dtype=float) > 1, self.forward_byte_s, 0.0
        ) * np.asarray(load.tokens, dtype=float)
        work = (
            work
            + (np.asarray(load.crossing, dtype=float) * self.crossing_byte_s + forwards)
            * vector_bytes
        )
        return np.asarray(work / held, dtype=np.float64)

    def overlapped_s(self, copying_s: ArrayLike, wires_s: ArrayLike) -> Floats:
        """Copying and wires together."""
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
