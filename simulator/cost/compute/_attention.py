"""Attention over the context."""

from __future__ import annotations

from simulator.cost.compute import Rates
from simulator.spec.accelerator import AcceleratorSpec
from simulator.spec.calibration import AttentionFit


def context_rates(accelerator: AcceleratorSpec, fit: AttentionFit) -> Rates:
    """How fast attention reads the context, computed in bf16."""
    flops_per_s = accelerator.flops_per_s("bf16") * fit.compute_fraction
    return Rates(flops_per_s, accelerator.memory_bytes_per_s * fit.memory_fraction, fit.floor_s)
