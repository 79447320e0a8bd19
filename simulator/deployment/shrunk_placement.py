"""Placement of a replica that goes on with some of its ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.base.plugins import build
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.placement import Placed
from simulator.policies.topology import Fabric


def shrink_placement(
    plan: DeploymentPlan, is_left_D: NDArray[np.bool_], placed: Placed
) -> Placement:
    """Leave out the data-parallel groups that are lost; ranks are numbered anew in their order.

    Args:
        is_left_D: whether each group is left, ``[D]``.
        placed: placement of experts on the ranks that are left.
    """
    whole, tp = plan.placement, plan.placement.layout.tp
    assert whole.experts is not None
    num_left = int(is_left_D.sum())
    layout = replace(whole.layout, attention_dp=num_left, ep=num_left * tp)
    left_R = np.flatnonzero(np.repeat(is_left_D, tp))
    fabric = _select_ranks(whole.fabric, left_R)
    policy = build("cost.comm", plan.spec.communication or {}, f"{plan.name} [communication]")
    return replace(
        whole,
        layout=layout,
        experts=replace(whole.experts, placed=placed),
        fabric=fabric,
        comm=policy.prepare(fabric, whole.calibration, whole.accelerator),
        slow_R=None if whole.slow_R is None else whole.slow_R[left_R],
        accelerator_R=whole.accelerator_R
        and tuple(whole.accelerator_R[rank] for rank in left_R.tolist()),
    )


def _select_ranks(fabric: Fabric, ranks: NDArray[np.int64]) -> Fabric:
    """Links of some ranks; nodes are numbered anew in their order."""

    def select(path_SRH: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(path_SRH[np.ix_(ranks, ranks)])

    own_card_SRH = fabric.own_card_SRH
    number = {int(rank): place for place, rank in enumerate(ranks)}
    return Fabric(
        links=tuple(link._replace(rank=number.get(link.rank, -1)) for link in fabric.links),
        path_SRH=select(fabric.path_SRH),
        node_R=np.unique(fabric.node_R[ranks], return_inverse=True)[1].astype(np.int64),
        own_card_SRH=None if own_card_SRH is None else select(own_card_SRH),
    )
