"""The front of speeds: what no other replica beats both for its users and for its GPUs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.planner.closed_form import Floats
from simulator.planner.space import ReplicaShape


class Speed(NamedTuple):
    """Speed of a replica that is kept busy, whatever the targets."""

    per_user: float
    """Output tokens per second of one user."""
    per_gpu: float
    """Output tokens per second of one GPU."""
    shape: ReplicaShape
    budget: int
    sequences: float
    """Sequences decoding on one data-parallel rank."""


class Speeds(NamedTuple):
    """Speeds of one replica under several loads; ``[n]`` each."""

    per_user: Floats
    per_gpu: Floats
    sequences: Floats
    shape: ReplicaShape
    budget: int
    prefill: ReplicaShape | None = None
    """The replica that computes the prompts, where that is another pool."""


def pareto(speeds: list[Speeds]) -> list[tuple[Speed, ReplicaShape | None]]:
    """Points that no other beats in both, the fastest first."""
    if not speeds:
        return []
    per_user, per_gpu = (
        np.concatenate([getattr(one, name) for one in speeds]) for name in ("per_user", "per_gpu")
    )
    order = np.lexsort((-per_gpu, -per_user))
    best = np.maximum.accumulate(np.concatenate([[0.0], per_gpu[order]]))
    ends = np.cumsum([len(one.per_user) for one in speeds])
    found = []
    for place in order[per_gpu[order] > best[:-1]]:
        n = int(np.searchsorted(ends, place, side="right"))
        one, at = speeds[n], int(place - ends[n])
        speed = Speed(
            float(one.per_user[at]),
            float(one.per_gpu[at]),
            one.shape,
            one.budget,
            float(one.sequences[at]),
        )
        found.append((speed, one.prefill))
    return found
