"""Reduction of a model to fewer experts, which are pruned or merged, one policy in a file."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.base.quantities import Experts, TopK


class ReductionPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    @property
    def num_experts(self) -> int:
        """Experts of a layer that are left."""
        ...

    @property
    def top_k(self) -> int | None:
        """Experts of a token; ``None`` = as many as before, or all that are left."""
        ...

    def reduce(self, load_E: Floats, pairs_EE: Floats) -> Ints:
        """Say what becomes of the experts of one layer.

        Args:
            load_E: tokens that chose each expert.
            pairs_EE: tokens that chose both of two experts.

        Returns:
            For each expert the number of the one that takes its tokens, from 0 to ``num_experts -
            1``, each of which some expert has; -1 where none does.
        """
        ...


class MostChosen(Frozen):
    """Base of reductions to the experts of each layer that most tokens chose."""

    num_experts: Experts
    """Experts of a layer that are left."""
    top_k: TopK | None = None
    """Experts of a token; absent = as many as before, or all that are left."""

    def choose_left(self, load_E: Floats) -> Ints:
        """Choose the experts that are left, in order, ``[num_experts]``."""
        return np.sort(np.argsort(-load_E, kind="stable")[: self.num_experts])
