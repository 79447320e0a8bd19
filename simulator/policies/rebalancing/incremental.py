"""Rebalancing by as few moves as make the load of ranks even enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.quantities import value_range
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import ExpertLoad, Migrating, list_intervals


class Incremental(Migrating):
    """Experts of the busiest rank of a layer change places with others, those first that help most,
    until its load is near the mean or no exchange helps.

    Copies stay of the experts that they are of. Two experts travel for each exchange, where placing
    all anew moves most of a layer.
    """

    tolerance: Annotated[float, value_range(1, 1e6)] = 1.1
    """Ratio of the busiest rank's load to the mean rank's in a layer that is even enough."""

    def looks(self) -> Iterator[float]:
        every = self.every_steps or self.every_s
        return list_intervals(every, every)

    def decide(self, load: ExpertLoad, rng: np.random.Generator) -> Placed | None:
        if not load.num_tokens:
            return None
        expert_LP = load.placed.expert_LP.copy()
        for layer, load_E in enumerate(load.load_LE):
            expert_LP[layer] = _exchange(
                expert_LP[layer], load.placed.rank_LP[layer], load_E, self.tolerance
            )
        if np.array_equal(expert_LP, load.placed.expert_LP):
            return None
        return Placed(expert_LP, load.placed.rank_LP, load.placed.num_ranks)


def _exchange(expert_P: Ints, rank_P: Ints, load_E: Floats, tolerance: float) -> Ints:
    """Exchange experts of one layer: the expert of every slot, ``[P]``."""
    share_E = load_E / np.maximum(np.bincount(expert_P, minlength=len(load_E)), 1)
    expert_P = expert_P.copy()
    load_R = np.bincount(rank_P, weights=share_E[expert_P])
    for _ in range(len(expert_P)):  # each exchange lowers the busiest rank's load
        busiest = int(load_R.argmax())
        if load_R[busiest] <= tolerance * load_R.mean():
            break
        own_P, share_P = np.flatnonzero(rank_P == busiest), share_E[expert_P]
        less_SP = share_P[own_P][:, None] - share_P[None, :]
        larger_SP = np.maximum(load_R[busiest] - less_SP, load_R[rank_P] + less_SP)
        larger_SP[:, rank_P == busiest] = np.inf
        place, other = np.unravel_index(int(larger_SP.argmin()), larger_SP.shape)
        if larger_SP[place, other] >= load_R[busiest] * (1 - 1e-9):
            break
        here, there = int(own_P[place]), int(other)
        less = share_P[here] - share_P[there]
        expert_P[[here, there]] = expert_P[[there, here]]
        load_R[busiest] -= less
        load_R[rank_P[there]] += less
    return expert_P
