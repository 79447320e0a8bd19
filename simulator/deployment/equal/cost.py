"""GPU-seconds a token: what serving has to pay for."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Sequences, Tokens
from simulator.config.accelerator import load_accelerator
from simulator.config.model import ModelSpec
from simulator.deployment.equal import Measure
from simulator.work.flops import count_decode_step


class Cost(Frozen):
    """Time of an accelerator for one decode step at the peaks that its vendor prints: the longer
    of computing and of reading weights and caches, each expert read once where a token uses it.

    No exchange between GPUs, no imbalance and no share of peaks enter: those are what a comparison
    of the pair simulates.
    """

    accelerator: str = "h100-sxm"
    """Name of a file in ``cluster_configs/accelerators``."""
    sequences: Sequences = 32
    """Sequences of the step."""
    context_tokens: Tokens = 2048
    """Tokens of each sequence."""

    def make_measure(self, reference: ModelSpec, where: str) -> Measure:
        accelerator = load_accelerator(self.accelerator, where)

        def count_seconds(model: ModelSpec) -> float:
            work = count_decode_step(model, self.sequences, self.context_tokens)
            computing = work.flops / accelerator.flops_per_s(model.weight_dtype)
            reading = (work.weight_bytes + work.cache_bytes) / accelerator.memory_bytes_per_s
            return max(computing, reading)

        return Measure("cost", count_seconds, lambda value: f"{value * 1e3:.3g} ms a step")
