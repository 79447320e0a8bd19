"""Slots of each rank where the experts do not divide evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.policies.placement import Placed


def slots_per_rank(num_slots: int, num_ranks: int) -> NDArray[np.int64]:
    """Slots of each rank, ``[R]``: as even as possible, the first ranks one more.

    >>> slots_per_rank(10, 4).tolist()
    [3, 3, 2, 2]
    """
    if not 1 <= num_ranks <= num_slots:
        raise UserError(
            f"cannot place {num_slots} experts on {num_ranks} ranks: "
            "every rank needs at least one expert"
        )
    return num_slots // num_ranks + (np.arange(num_ranks) < num_slots % num_ranks).astype(np.int64)


def count_slots(kind: str, num_slots: int | None, num_experts: int, num_ranks: int) -> int:
    """Slots of all ranks together where each rank has as many: those that are asked for, or the
    fewest that hold every expert.

    Raises:
        UserError: if they cannot hold every expert, or do not divide.
    """
    found = num_slots or -(-num_experts // num_ranks) * num_ranks
    if found < num_experts or found % num_ranks:
        raise UserError(
            f"placement '{kind}': num_slots = {found} must be a multiple of the {num_ranks} "
            f"ranks and at least the {num_experts} experts"
        )
    return found


def in_blocks(expert_LP: NDArray[np.int64], num_ranks: int) -> Placed:
    """Cut each layer's list of experts into one block for each rank."""
    rank_P = np.repeat(np.arange(num_ranks), slots_per_rank(expert_LP.shape[1], num_ranks))
    return Placed(expert_LP, np.tile(rank_P, (len(expert_LP), 1)), num_ranks)
