"""Seconds of routed experts that lie below a GPU's memory: copies to the GPU, and products on the
processor, beside what the GPU computes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Floats
from simulator.config.host import HostSpec, TierName
from simulator.work.expert_cache import CacheUses


class OffloadRates(NamedTuple):
    """Rates at which experts are brought to a GPU, and computed where they lie."""

    copy_bytes_per_s: float
    """Bytes per second from the memory that experts lie in to the GPU's own."""
    latency_s: float
    """Seconds until the first byte of a copy arrives."""
    read_bytes_per_s: float
    """Bytes per second at which the processor reads experts."""
    flops_per_s: float
    """FLOP/s that the processor achieves; 0 where it computes none."""


def find_rates(host: HostSpec, tier: TierName) -> OffloadRates:
    """Find the rates of a machine whose experts lie in ``tier``, which it has.

    Experts on storage pass main memory on their way, piece by piece, so that the slower of the two
    ways sets the rate.
    """
    read = host.tiers[tier].read_bytes_per_s
    copy = read if host.link is None else min(read, host.link.copy_bytes_per_s)
    flops = 0.0
    if host.processor is not None:
        flops = host.processor.flops_per_s * host.processor.achieved
    return OffloadRates(copy, host.link.latency_s if host.link else 0.0, read, flops)


class ExpertSize(NamedTuple):
    """Bytes of one expert, and FLOPs of one of its tokens."""

    weight_bytes: float
    pair_flops: float


def offloaded_s(
    uses: CacheUses, gpu_s: float, beside_s: float, size: ExpertSize, rates: OffloadRates
) -> Floats:
    """Seconds of the routed experts, ``[S, L]`` by step and layer of a replay.

    The GPU computes the experts it holds while others arrive, and these behind their arrival; the
    processor computes the rest meanwhile, and reads the same memory as the copies do.

    Experts are fetched ahead while the link idles: from when the layer before has all that it asked
    for, until this layer asks. Then they give way to what is missing, as ProMoE's do
    (arXiv:2410.22134): what of the right ones has not arrived is asked for like any other, and of
    the wrong ones nothing more travels. How long the link idles is taken as if what the layer
    before had fetched ahead were late; the first layer's is the last one, of the step before.

    Args:
        gpu_s: seconds of the GPU with all experts in its own memory; each takes its share.
        beside_s: seconds of the GPU for the rest of a layer.
    """
    processor_s = _processor_s(uses, size, rates)

    def layer_s(arriving_SL: NDArray[np.number], copied_s: Floats) -> Floats:
        used_SL = np.maximum(uses.used_SL, 1)
        arriving_s = gpu_s * arriving_SL / used_SL
        held_s = gpu_s - arriving_s - gpu_s * uses.below_SL / used_SL
        return np.maximum(np.maximum(held_s, copied_s) + arriving_s, processor_s)

    asked_SL = uses.uploaded_SL + uses.ahead_SL
    copied_s = copy_s(asked_SL, size, rates)
    whole_s = layer_s(asked_SL, copied_s)
    if not uses.fetched_SL.any():
        return whole_s
    idle_s = np.roll(whole_s - copied_s, 1, axis=1) + beside_s
    fetched_s = copy_s(uses.fetched_SL, size, rates)
    share_SL = np.divide(idle_s, fetched_s, out=np.ones_like(idle_s), where=fetched_s > idle_s)
    late_SL = asked_SL - uses.ahead_SL * share_SL
    return layer_s(late_SL, copy_s(late_SL, size, rates))


def copy_s(experts: NDArray[np.number], size: ExpertSize, rates: OffloadRates) -> Floats:
    """Seconds in which so many experts travel to the GPU, one behind another."""
    moving_s = experts * (size.weight_bytes / rates.copy_bytes_per_s)
    return np.where(experts > 0, rates.latency_s + moving_s, 0.0)


def _processor_s(uses: CacheUses, size: ExpertSize, rates: OffloadRates) -> Floats:
    """Seconds of the processor, from the vectors' way there to their way back."""
    if rates.flops_per_s == 0.0:
        return np.zeros(uses.below_SL.shape)
    read_s = (uses.below_SL + uses.uploaded_SL) * (size.weight_bytes / rates.read_bytes_per_s)
    computed_s = uses.below_pairs_SL * (size.pair_flops / rates.flops_per_s)
    busy_s = 2 * rates.latency_s + np.maximum(read_s, computed_s)
    return np.where(uses.below_SL > 0, busy_s, 0.0)
