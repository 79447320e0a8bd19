"""The machine around an accelerator: memory and storage below the accelerator's own, and the
processor that can compute there.
"""

from __future__ import annotations

from typing import Literal

from simulator.base.frozen import Frozen
from simulator.base.quantities import BytesPerSecond, FlopsPerSecond, MemoryBytes, Seconds, Share

TierName = Literal["dram", "storage"]
"""Memory below the accelerator's own."""


class MemoryTier(Frozen):
    """Memory that experts lie in and are read from."""

    memory_bytes: MemoryBytes
    """Bytes that experts may take."""
    bytes_per_s: BytesPerSecond
    """Peak rate of reading, bytes per second."""
    achieved: Share
    """Share of the peak that reading whole experts achieves."""

    @property
    def read_bytes_per_s(self) -> float:
        """Rate of reading whole experts, bytes per second."""
        return self.bytes_per_s * self.achieved


class HostLink(Frozen):
    """Wires between the memory of a machine and one accelerator's own."""

    bytes_per_s: BytesPerSecond
    """Peak rate towards the accelerator, bytes per second."""
    latency_s: Seconds
    """Seconds until the first byte arrives: a copy is started and waited for."""
    achieved: Share
    """Share of the peak that copies of whole experts achieve."""

    @property
    def copy_bytes_per_s(self) -> float:
        """Rate of copies of whole experts, bytes per second."""
        return self.bytes_per_s * self.achieved


class Processor(Frozen):
    """Cores of a machine, which compute experts where they lie."""

    flops_per_s: FlopsPerSecond
    """Peak rate of products in the format that expert kernels multiply in, FLOP/s."""
    achieved: Share
    """Share of the peak that large products achieve."""


class HostSpec(Frozen):
    """Memory below an accelerator's own. A machine whose processor and GPU share one memory has
    ``storage`` alone.
    """

    dram: MemoryTier | None = None
    """Main memory; absent = it is the accelerator's own (unified memory)."""
    storage: MemoryTier | None = None
    """Solid-state disk or flash; absent = experts are not read from it."""
    link: HostLink | None = None
    """Wires from main memory to each accelerator; absent = memory is unified."""
    processor: Processor | None = None
    """Cores that can compute experts; absent = they compute none."""

    @property
    def tiers(self) -> dict[TierName, MemoryTier]:
        """Memories that experts may lie in, by name, the fastest first."""
        named: dict[TierName, MemoryTier | None] = {"dram": self.dram, "storage": self.storage}
        return {name: tier for name, tier in named.items() if tier is not None}

    def with_speed(self, factor: float) -> HostSpec:
        """The machine with all of it so many times as fast."""
        link, processor = self.link, self.processor
        tiers: dict[str, MemoryTier] = {
            name: tier.model_copy(update={"bytes_per_s": tier.bytes_per_s * factor})
            for name, tier in self.tiers.items()
        }
        if link is not None:
            rates = {"bytes_per_s": link.bytes_per_s * factor, "latency_s": link.latency_s / factor}
            link = link.model_copy(update=rates)
        if processor is not None:
            rates = {"flops_per_s": processor.flops_per_s * factor}
            processor = processor.model_copy(update=rates)
        return self.model_copy(update={**tiers, "link": link, "processor": processor})
