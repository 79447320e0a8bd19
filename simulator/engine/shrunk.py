"""Replica that goes on with some of its ranks: the prices of its steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.deployment.shrunk_placement import shrink_placement
from simulator.engine.by_ranks import ByRanks, Fidelity, start_ranks
from simulator.engine.pool import PoolState
from simulator.engine.state import Ranks
from simulator.policies.placement import Placed
from simulator.step.mixes import Mixes
from simulator.work.memory import expert_bytes_per_layer


@dataclass(frozen=True)
class ShrunkReplica:
    """Prices of steps of the ranks that are left."""

    left_d: NDArray[np.int64]
    """Data-parallel groups that are left, by their number in the whole replica."""
    placed: Placed
    """Placement of experts on the ranks that are left."""
    mixes: Mixes
    by_ranks: ByRanks | None
    """Executor of steps, where ranks are simulated."""
    price_state: int
    """State of the pool's table that the steps are priced in, where ranks are not simulated."""

    def list_ranks(self, tp: int) -> NDArray[np.int64]:
        """List the ranks that are left, by their number in the whole replica."""
        ranks_DT = self.left_d[:, None] * tp + np.arange(tp)
        return np.asarray(ranks_DT.ravel())

    def select_ranks(self, ranks: Ranks) -> Ranks:
        """Copy the state of the ranks that are left, to read a formed step from."""
        return Ranks._make(
            array if array is ranks.counts else array[self.left_d] for array in ranks
        )


def shrink_replica(
    pool: PoolState,
    is_left_D: NDArray[np.bool_],
    placed: Placed,
    stream: str,
    fidelity: Fidelity,
    price_state: int,
) -> ShrunkReplica:
    """Prepare the prices of a replica of a pool that has lost some of its data-parallel groups.

    Args:
        is_left_D: whether each group is left, ``[D]``.
        placed: placement of experts on the ranks that are left.
        stream: name of the random stream of the pool's steps.
        price_state: number of the state in the pool's table.
    """
    prices = pool.price_placement(shrink_placement(pool.plan, is_left_D, placed))
    by_ranks = None if fidelity == "step" else start_ranks(prices, fidelity, stream)
    if by_ranks is not None:
        by_ranks.overflow = pool.overflow
    left_d, mixes = np.flatnonzero(is_left_D), pool.list_mixes(prices)
    return ShrunkReplica(left_d, placed, mixes, by_ranks, price_state)


def count_loaded_bytes(
    pool: PoolState, before: ShrunkReplica | None, shrunk: ShrunkReplica
) -> float:
    """Count the bytes of experts that the rank which lacks most of them loads when a replica goes
    on with the ranks that are left.

    Args:
        before: the replica as it was, where it had lost ranks already.
    """
    placement = pool.plan.placement
    experts, moe, layout = placement.experts, placement.model.moe, placement.layout
    assert experts is not None
    assert moe is not None
    had, had_R = experts.placed, np.arange(layout.num_ranks)
    if before is not None:
        had, had_R = before.placed, before.list_ranks(layout.tp)
    left_R = shrunk.list_ranks(layout.tp)
    loaded_R = np.zeros(len(left_R))
    for layer in range(len(had.expert_LP)):
        held = _list_held(had, layer, had_R)
        for rank, _ in _list_held(shrunk.placed, layer, left_R) - held:
            loaded_R[np.searchsorted(left_R, rank)] += 1
    expert_bytes = expert_bytes_per_layer(
        moe, placement.model.hidden_size, layout, placement.precision, num_slots=layout.ep
    )
    return float(loaded_R.max() * expert_bytes)


def _list_held(placed: Placed, layer: int, ranks: NDArray[np.int64]) -> set[tuple[int, int]]:
    """List the ranks, by their number in the whole replica, with the experts that they hold."""
    held = ranks[placed.rank_LP[layer]].tolist()
    return set(zip(held, placed.expert_LP[layer].tolist(), strict=True))
