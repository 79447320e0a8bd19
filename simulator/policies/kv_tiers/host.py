"""Main memory of the machine, as vLLM's ``--kv-offloading-size``, SGLang's ``--hicache-size`` and
TensorRT-LLM's ``host_cache_size`` use it.
"""

from __future__ import annotations

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import BytesPerSecond, MemoryBytes, Seconds
from simulator.config.cluster import ClusterSpec
from simulator.policies.kv_tiers import Tier


class Host(Frozen):
    """Each GPU copies its part of a cache over its own link to main memory."""

    memory_bytes: MemoryBytes
    """Bytes of main memory for each GPU's part of the cache (of a node, divide by its GPUs)."""
    read_bytes_per_s: BytesPerSecond | None = None
    """Rate from main memory to each GPU, bytes per second; absent = that of ``host.link`` in the
    cluster's file."""
    write_bytes_per_s: BytesPerSecond | None = None
    """Rate from each GPU to main memory, bytes per second; absent = as it is read."""
    latency_s: Seconds | None = None
    """Seconds until the first byte arrives; absent = that of ``host.link``, else 0."""

    def tier(self, cluster: ClusterSpec) -> Tier:
        link = cluster.host.link if cluster.host else None
        read_bytes_per_s, latency_s = self.read_bytes_per_s, self.latency_s
        if link is not None:
            read_bytes_per_s = read_bytes_per_s or link.copy_bytes_per_s
            latency_s = link.latency_s if latency_s is None else latency_s
        if read_bytes_per_s is None:
            raise UserError(
                f"the file of cluster '{cluster.name}' has no host.link, main memory apart from "
                "the GPU's: give read_bytes_per_s (PCIe 5.0 x16 has a peak of 64e9 each way, "
                "PCIe 4.0 x16 of 32e9; copies reach some 0.8 of it)"
            )
        dram = cluster.host.dram if cluster.host else None
        if dram is not None and self.memory_bytes * cluster.gpus_per_node > dram.memory_bytes:
            raise UserError(
                f"memory_bytes of {cluster.gpus_per_node} GPUs is more than the "
                f"{dram.memory_bytes:.3g} bytes of main memory that a node of '{cluster.name}' has "
                "to give"
            )
        write_bytes_per_s = self.write_bytes_per_s or read_bytes_per_s
        return Tier(self.memory_bytes, read_bytes_per_s, write_bytes_per_s, latency_s or 0.0)
