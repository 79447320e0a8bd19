"""Sentence about offloaded experts: what a sequence finds in the GPU's memory, and what travels."""

from __future__ import annotations

from simulator.deployment.placement import Placement
from simulator.work.memory import expert_bytes


def describe_offload(placement: Placement) -> str | None:
    """Say what offloaded experts cost a sequence that is served alone; ``None`` without any."""
    offload = placement.offload
    if offload is None:
        return None
    uses, rates = offload.replay(1), offload.rates
    size = expert_bytes(placement.model, placement.layout, placement.precision, placement.pruning)
    brought = float((uses.uploaded_SL + uses.ahead_SL).sum(axis=1).mean()) * size
    in_vain = float((uses.fetched_SL - uses.ahead_SL).sum(axis=1).mean()) * size
    below = float(uses.below_SL.sum(axis=1).mean()) * size
    costs = [
        f"{amount / 1e9:.2f} GB for each token {way} at {rate / 1e9:.1f} GB/s"
        for amount, way, rate in (
            (brought, "are brought there", rates.copy_bytes_per_s),
            (below, "are read by the processor", rates.read_bytes_per_s),
        )
        if amount
    ]
    if in_vain:
        costs.append(f"and up to {in_vain / 1e9:.2f} GB are fetched ahead in vain")
    return (
        f"{placement.name}: {offload.rules.slots} of the {offload.num_experts} experts of a layer "
        f"are in the GPU's memory; by replay, a sequence alone finds {uses.hit_rate:.0%} of its "
        f"experts there" + "".join(f", {cost}" for cost in costs)
    )
