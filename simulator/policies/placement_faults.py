"""Faults of a placement that a user's own policy makes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.contracts import is_array
from simulator.policies.placement import Placed


def find_fault(placed: Placed, shape: tuple[int, ...], num_ranks: int) -> str:
    """First fault of a placement, with its layer; empty where it has none."""
    num_layers, num_experts = shape
    expert_LP, rank_LP = placed.expert_LP, placed.rank_LP
    if placed.num_ranks != num_ranks:
        return f"num_ranks is {placed.num_ranks}"
    if not is_array(expert_LP, (num_layers, None), whole=True):
        return "expert_LP is not of that shape"
    if not is_array(rank_LP, expert_LP.shape, whole=True):
        return "rank_LP is not of the shape of expert_LP"
    if rank_LP.min(initial=0) < 0 or rank_LP.max(initial=0) >= num_ranks:
        return f"rank_LP holds ranks beyond 0 to {num_ranks - 1}"
    for layer, (expert_P, slots_R) in enumerate(zip(expert_LP, count_slots(placed), strict=True)):
        if wrong := sorted(set(expert_P.tolist()) ^ set(range(num_experts))):
            return f"layer {layer} {'lacks' if wrong[0] in range(num_experts) else 'has'} " + (
                f"expert {wrong[0]}"
            )
        if np.ptp(slots_R) > 1:
            return (
                f"layer {layer} has {slots_R.max()} slots on rank {slots_R.argmax()} and "
                f"{slots_R.min()} on rank {slots_R.argmin()}"
            )
    return ""


def count_slots(placed: Placed) -> NDArray[np.int64]:
    """Slots of each rank in each layer, ``[L, R]``."""
    counts = [np.bincount(rank_P, minlength=placed.num_ranks) for rank_P in placed.rank_LP]
    return np.stack(counts)
