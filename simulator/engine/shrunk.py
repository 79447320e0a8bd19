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
    mixes: Mixes
    by_ranks: ByRanks | None
    """Executor of steps, where ranks are simulated."""
    price_state: int
    """State of the pool's table that the steps are priced in, where ranks are not simulated."""

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
    return ShrunkReplica(np.flatnonzero(is_left_D), pool.list_mixes(prices), by_ranks, price_state)


def count_loaded_bytes(pool: PoolState, is_left_D: NDArray[np.bool_], placed: Placed) -> float:
    """Count the bytes of experts that the rank which lacks most of them loads when a replica goes
    on with the ranks that are left.
    """
    placement = pool.plan.placement
    experts, moe, layout = placement.experts, placement.model.moe, placement.layout
    assert experts is not None
    assert moe is not None
    left_R = np.flatnonzero(np.repeat(is_left_D, layout.tp))
    loaded_R = np.zeros(len(left_R))
    for layer, (expert_P, rank_P) in enumerate(zip(placed.expert_LP, placed.rank_LP, strict=True)):
        before_P, ranks_P = experts.placed.expert_LP[layer], experts.placed.rank_LP[layer]
        had = set(zip(ranks_P.tolist(), before_P.tolist(), strict=True))
        wants = set(zip(rank_P.tolist(), expert_P.tolist(), strict=True))
        for rank, expert in wants:
            loaded_R[rank] += (int(left_R[rank]), expert) not in had
    expert_bytes = expert_bytes_per_layer(
        moe, placement.model.hidden_size, layout, placement.precision, num_slots=layout.ep
    )
    return float(loaded_R.max() * expert_bytes)
