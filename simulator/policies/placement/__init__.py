"""Placement of experts on ranks, one policy in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.errors import UserError


@dataclass(frozen=True)
class Placed:
    """Physical experts (slots) of every MoE layer. Several slots may hold copies of one expert."""

    expert_LP: Ints
    """Expert that each slot holds, ``[L, P]``."""
    rank_LP: Ints
    """Rank that each slot lies on, ``[L, P]``."""
    num_ranks: int


class PlacementPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def place(self, load_LE: Floats, num_ranks: int, rng: np.random.Generator) -> Placed:
        """Spread the experts of every layer over the ranks; slot counts of two ranks differ by at
        most one.

        Args:
            load_LE: tokens that each expert got *yesterday* (a sample that is not the one being
                run), ``[L, E]``.
            num_ranks: ``R``, at most ``E``.
            rng: for policies that draw.
        """
        ...


@runtime_checkable
class PairPlacement(Protocol):
    """Placement policy that looks at the experts that tokens choose together, too."""

    def place_pairs(
        self, load_LE: Floats, pairs_LEE: Floats, num_ranks: int, rng: np.random.Generator
    ) -> Placed:
        """Spread the experts as :meth:`PlacementPolicy.place` does.

        Args:
            pairs_LEE: tokens that chose both of two experts, of the same sample as ``load_LE``,
                ``[L, E, E]``; each token's own choice on the diagonal.
        """
        ...


def slots_per_rank(num_slots: int, num_ranks: int) -> Ints:
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


def choose_num_slots(kind: str, num_slots: int | None, num_experts: int, num_ranks: int) -> int:
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


def in_blocks(expert_LP: Ints, num_ranks: int) -> Placed:
    """Cut each layer's list of experts into one block for each rank."""
    rank_P = np.repeat(np.arange(num_ranks), slots_per_rank(expert_LP.shape[1], num_ranks))
    return Placed(expert_LP, np.tile(rank_P, (len(expert_LP), 1)), num_ranks)
