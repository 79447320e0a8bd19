"""Bytes of weights and caches: what a machine has to hold."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import SequenceCount, Tokens
from simulator.config.model import ModelSpec
from simulator.deployment.equal import Measure
from simulator.work.flops import WHOLE, release_precision
from simulator.work.memory import cache_size, weight_bytes


class Memory(Frozen):
    """Bytes of the weights as released, and of the KV caches of some sequences in 16 bits."""

    sequences: SequenceCount = 1
    """Sequences whose caches are held."""
    context_tokens: Tokens = 8192
    """Tokens of each sequence."""

    def make_measure(self, reference: ModelSpec, where: str) -> Measure:
        return Measure("memory", self._count_bytes, lambda value: f"{value / 1e9:,.1f} GB")

    def _count_bytes(self, model: ModelSpec) -> float:
        precision = release_precision(model)
        cache = cache_size(model, WHOLE, precision).bytes_for(self.context_tokens)
        return weight_bytes(model, WHOLE, precision) + self.sequences * cache
