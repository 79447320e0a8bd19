"""Replicas that a question allows, as numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from simulator.config.capacity import CandidateModel
from simulator.config.pruning import Pruning


class ModelVariant(NamedTuple):
    """One of the question's models, whole or pruned, with some values of ``space.keys``."""

    number: int
    """Index into the question's models."""
    entry: CandidateModel
    pruning: Pruning | None
    quality: float | None
    keys: Mapping[str, Any]
    """Values by dotted key."""

    @property
    def table(self) -> dict[str, Any]:
        """Keys of a deployment that the search does not decide."""
        found = copy.deepcopy(self.entry.deployment)
        for key, value in self.keys.items():
            *outer, last = key.split(".")
            inner = found
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = copy.deepcopy(value)
        return found


class ReplicaShape(NamedTuple):
    """One replica of a deployment."""

    model: int
    """Index into the space's models."""
    machines: int
    """Index into the space's machines."""
    tp: int
    attention_dp: int
    ep: int
    weight_dtype: str
    """Empty = as the model is released, experts perhaps in another format than the rest."""
    kv_dtype: str
    slots: int
    """Expert slots in all; 0 = one an expert, in order."""
    overlap: str
    pp: int = 1
    dispatch_dtype: str = ""
    """Empty = as engines do with the weights' format, or nothing travels."""
    placement: str = "contiguous"
    """Placement of experts without copies."""
    max_sequences: int = 0
    """Sequences at once of a data-parallel rank; 0 = as many as the engine starts with."""
    prompts: str = ""
    """``"chunked"`` to fill steps, or ``"whole"``; empty = as the engine's release does."""
    memory_fraction: float = 0.0
    """Share of the memory, where the engine's own leaves no room; 0 = its own."""

    @property
    def num_ranks(self) -> int:
        """GPUs of a replica."""
        return self.tp * self.attention_dp * self.pp

    @property
    def kernels(self) -> ReplicaShape:
        """The shape whose blocks of a step take as long: without what changes the cache, the
        batches and their way through the layers.
        """
        return self._replace(
            kv_dtype="", overlap="", pp=1, max_sequences=0, prompts="", memory_fraction=0.0
        )
