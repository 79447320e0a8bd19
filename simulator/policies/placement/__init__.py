"""Placement of experts on ranks, one policy in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Placed:
    """Physical experts (slots) of every MoE layer. Several slots may hold copies of one expert."""

    expert_LP: NDArray[np.int64]
    """Expert that each slot holds, ``[L, P]``."""
    rank_LP: NDArray[np.int64]
    """Rank that each slot lies on, ``[L, P]``."""
    num_ranks: int


class PlacementPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def place(
        self, load_LE: NDArray[np.float64], num_ranks: int, rng: np.random.Generator
    ) -> Placed:
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
        self,
        load_LE: NDArray[np.float64],
        pairs_LEE: NDArray[np.float64],
        num_ranks: int,
        rng: np.random.Generator,
    ) -> Placed:
        """Spread the experts as :meth:`PlacementPolicy.place` does.

        Args:
            pairs_LEE: tokens that chose both of two experts, of the same sample as ``load_LE``,
                ``[L, E, E]``; each token's own choice on the diagonal.
        """
        ...
