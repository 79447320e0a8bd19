"""Rebalancing of experts during a run: the load given to the policy, and the cost of moving."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.cost.comm import Exchange
from simulator.deployment.placement import Placement
from simulator.policies.messages import Messages
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import ExpertLoad
from simulator.results.tables import ExpertsMoved
from simulator.work.expert_moves import count_expert_moves
from simulator.work.memory import expert_bytes_per_layer

Floats = NDArray[np.float64]
Moved = TypeVar("Moved", bound=ExpertsMoved)


def expect_load(
    placement: Placement, at_s: float, num_tokens: int, profile_LE: Floats | None
) -> ExpertLoad:
    """Expected load of each expert after ``num_tokens`` tokens, from the pool that steps take their
    choices from.

    Args:
        profile_LE: load of each expert by the load profiles of the tokens' requests, ``[L, E]``;
            ``None`` where requests have none.
    """
    experts, moe = placement.experts, placement.model.moe
    assert experts is not None
    assert moe is not None
    load_LE = profile_LE
    if load_LE is None:
        pool_LTK = experts.topk_ids_LTK
        counts = [np.bincount(ids_TK.ravel(), minlength=moe.num_experts) for ids_TK in pool_LTK]
        load_LE = np.stack(counts) * (num_tokens / pool_LTK.shape[1])
    # A policy gets copies, for what it writes into them must not move anything.
    placed = copy.deepcopy(experts.placed)
    return ExpertLoad(at_s, num_tokens, load_LE, placed)


def moves_any(placement: Placement, placed: Placed) -> bool:
    """Whether any slot holds another expert, or lies elsewhere, than now."""
    assert placement.experts is not None
    return bool(_find_changed_layers(placement.experts.placed, placed).any())


def place_again(placement: Placement, placed: Placed) -> Placement:
    """Replace the placement of the experts."""
    assert placement.experts is not None
    return replace(placement, experts=replace(placement.experts, placed=placed))


def judge_move(moved: Moved, load: ExpertLoad, before: Placed) -> Moved:
    """Add what a move came to: the imbalance of the load that followed, and what it would have been
    had experts stayed.

    Args:
        load: from the move to the next look.
        before: placement before the move.
    """
    return replace(
        moved,
        imbalance_next=load.measure_imbalance(load.placed),
        imbalance_unmoved=load.measure_imbalance(before),
    )


class ExpertTraffic(NamedTuple):
    """Weights that travel in a replica when experts move."""

    num_experts: int
    """Copies of experts, over all layers."""
    num_bytes: float
    num_layers: int
    """Layers that change, each of which is work for the host."""
    exchange: Exchange
    """Price of their way over the replica's links: that of all layers at once."""


def find_part_bytes(placement: Placement) -> float:
    """Bytes of a rank's part of one expert of one layer."""
    assert placement.model.moe is not None
    return expert_bytes_per_layer(
        placement.model.moe,
        placement.model.hidden_size,
        placement.layout,
        placement.precision,
        num_slots=placement.layout.ep,
        pruning=placement.pruning,
    )


def list_traffic(placement: Placement, placed: Placed) -> ExpertTraffic:
    """List the weights that travel when the experts of one replica move. A rank of a split expert
    gets its part from the same part of another copy.
    """
    experts, layout = placement.experts, placement.layout
    assert experts is not None
    nodes = placement.fabric.node_R[:: layout.moe_tp]
    moves_SR = count_expert_moves(experts.placed, placed, nodes)
    part_bytes = find_part_bytes(placement)
    parts_SR = np.kron(moves_SR, np.eye(layout.moe_tp, dtype=np.int64))
    sent = Messages.from_matrix(parts_SR.astype(np.float64)).times(part_bytes)
    return ExpertTraffic(
        int(moves_SR.sum()),
        float(parts_SR.sum() * part_bytes),
        int(_find_changed_layers(experts.placed, placed).sum()),
        placement.comm.exchange("dispatch", sent),
    )


def price_move(
    placement: Placement, placed: Placed, load: ExpertLoad, pool: str, host_s_per_layer: float
) -> ExpertsMoved:
    """Price moving the experts of one replica, whose links carry nothing else meanwhile: copies,
    bytes and seconds of one exchange behind the host's work.

    Args:
        host_s_per_layer: seconds of the engine's own work for each layer that changes.
    """
    assert placement.experts is not None
    traffic = list_traffic(placement, placed)
    return ExpertsMoved(
        load.at_s,
        pool,
        traffic.num_experts,
        traffic.num_bytes,
        traffic.exchange.alone_s + host_s_per_layer * traffic.num_layers,
        load.measure_imbalance(placement.experts.placed),
        load.measure_imbalance(placed),
    )


def list_parts(before: Placed, after: Placed, num_layers: int) -> Iterator[Placed]:
    """List the placements on the way from one to another, each with the next ``num_layers`` of the
    layers that differ as they shall be.
    """
    changed = np.flatnonzero(_find_changed_layers(before, after))
    for first in range(0, len(changed), num_layers):
        moved = changed[: first + num_layers]
        expert_LP, rank_LP = before.expert_LP.copy(), before.rank_LP.copy()
        expert_LP[moved], rank_LP[moved] = after.expert_LP[moved], after.rank_LP[moved]
        yield Placed(expert_LP, rank_LP, after.num_ranks)


def _find_changed_layers(before: Placed, after: Placed) -> NDArray[np.bool_]:
    """Whether any slot of a layer holds another expert, or lies elsewhere, than before, ``[L]``."""
    stays_LP = (before.expert_LP == after.expert_LP) & (before.rank_LP == after.rank_LP)
    changed_L: NDArray[np.bool_] = ~stays_LP.all(axis=1)
    return changed_L
