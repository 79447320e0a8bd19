"""Experts in memory and on disk that executed steps used, beside their prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from simulator.deployment.plan import DeploymentPlan
from simulator.results.executed import ExecutedCache

if TYPE_CHECKING:  # it imports torch
    from simulator.runtime.layers.cached_experts import CacheReads


def sum_reads(
    plan: DeploymentPlan, reads: Mapping[str, Sequence[CacheReads]], tokens: Mapping[str, int]
) -> list[ExecutedCache]:
    """Sum what the steps of each kind found in memory and read from the disk; nothing where a
    rank's memory holds all experts.

    Args:
        reads: of all measured steps and layers, by kind of step.
        tokens: new tokens of a step of each kind.
    """
    offload = plan.placement.offload
    if offload is None:
        return []
    found = []
    for kind, ones in reads.items():
        used, held = sum(one.used for one in ones), sum(one.held for one in ones)
        read_bytes = float(sum(one.read_bytes for one in ones))
        found.append(
            ExecutedCache(
                kind=kind,
                used=used,
                held=held,
                hit_rate=held / max(used, 1),
                predicted_hit_rate=offload.replay(tokens[kind]).hit_rate,
                read_bytes=read_bytes,
                read_s=sum(one.read_s for one in ones),
                predicted_read_s=read_bytes / offload.rates.copy_bytes_per_s,
            )
        )
    return found
