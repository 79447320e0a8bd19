"""Ranks that are left of a replica that has lost some, and the experts that they load."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.rebalancing import expect_load
from simulator.engine.state import Ranks
from simulator.policies.failure_contracts import shrink_experts
from simulator.policies.placement import Placed
from simulator.policies.recovery import Loss
from simulator.work.memory import expert_bytes_per_layer


@dataclass(frozen=True)
class RanksLeft:
    """Ranks that a replica goes on with, and their experts."""

    left_d: NDArray[np.int64]
    """Data-parallel groups that are left, by their number in the whole replica."""
    placed: Placed
    """Placement of experts on the ranks that are left."""

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Value that equals that of the same ranks with the same experts."""
        return self.left_d.tobytes(), self.placed.expert_LP.tobytes()

    def list_ranks(self, tp: int) -> NDArray[np.int64]:
        """List the ranks that are left, by their number in the whole replica."""
        ranks_DT = self.left_d[:, None] * tp + np.arange(tp)
        return np.asarray(ranks_DT.ravel())

    def select_ranks(self, ranks: Ranks) -> Ranks:
        """Copy the state of the ranks that are left, to read a formed step from."""
        return Ranks._make(
            array if array is ranks.counts else array[self.left_d] for array in ranks
        )


def place_on_left(
    plan: DeploymentPlan, before: RanksLeft | None, lost_D: NDArray[np.bool_]
) -> Placed | None:
    """Place the experts on the ranks that are left, as the recovery policy has it: from where they
    lie, or where ranks join, from where they lay while all worked. ``None`` where the replica
    cannot go on.

    Args:
        plan: of the whole replica.
        before: ranks that it had until then; ``None`` where it had all.
        lost_D: whether each data-parallel group of the whole replica is lost, ``[D]``.
    """
    if lost_D.all() or plan.placement.experts is None:
        return None
    load = expect_load(plan.placement, 0.0, 1, None)
    loss = Loss(lost_D, load.placed, load.load_LE)
    if before is not None and np.isin(np.flatnonzero(~lost_D), before.left_d).all():
        loss = loss._replace(lost_D=lost_D[before.left_d], placed=before.placed)
    return shrink_experts(plan.serving.recovery, loss)


def count_loaded_bytes(placement: Placement, before: RanksLeft | None, left: RanksLeft) -> float:
    """Count the bytes of experts that the rank which lacks most of them loads when a replica goes
    on with the ranks that are left.

    Args:
        placement: of the whole replica.
        before: ranks that it had until then, where it had lost some already.
    """
    experts, moe, layout = placement.experts, placement.model.moe, placement.layout
    assert experts is not None
    assert moe is not None
    had, had_R = experts.placed, np.arange(layout.num_ranks)
    if before is not None:
        had, had_R = before.placed, before.list_ranks(layout.tp)
    left_R = left.list_ranks(layout.tp)
    loaded_R = np.zeros(len(left_R))
    for layer in range(len(had.expert_LP)):
        held = _list_held(had, layer, had_R)
        for rank, _ in _list_held(left.placed, layer, left_R) - held:
            loaded_R[np.searchsorted(left_R, rank)] += 1
    expert_bytes = expert_bytes_per_layer(
        moe,
        placement.model.hidden_size,
        layout,
        placement.precision,
        num_slots=layout.ep,
        pruning=placement.pruning,
    )
    return float(loaded_R.max() * expert_bytes)


def _list_held(placed: Placed, layer: int, ranks: NDArray[np.int64]) -> set[tuple[int, int]]:
    """List the ranks, by their number in the whole replica, with the experts that they hold."""
    held = ranks[placed.rank_LP[layer]].tolist()
    return set(zip(held, placed.expert_LP[layer].tolist(), strict=True))
