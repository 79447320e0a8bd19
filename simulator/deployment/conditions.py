"""Condition of a replica's GPUs and links, and the placement that prices it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.base.arrays import Bools, Ints
from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.config.failures import Degraded
from simulator.deployment.other_gpus import find_hit, list_kinds
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.failures import Machines
from simulator.policies.placement import Placed
from simulator.policies.topology import Fabric, Link


@dataclass(frozen=True)
class Condition:
    """Shares of their usual speed that a replica's GPUs and links have at some time; replicas that
    are equally slow have equal conditions.
    """

    compute_R: tuple[float, ...]
    """Share of its usual speed at which each rank computes, ``[R]``."""
    scale_up_R: tuple[float, ...]
    """Share of the rate of each rank's links inside its fast domain, ``[R]``."""
    scale_out_R: tuple[float, ...]
    """Share of the rate of each rank's links between domains, ``[R]``."""
    shared: tuple[float, float]
    """Shares of the rate of links that several ranks share, inside domains and between."""
    accelerator_R: tuple[str, ...] | None = None
    """Accelerator of each rank, ``[R]``, where some are of another kind than the cluster's own,
    which is an empty name; ``None`` where none is."""

    @classmethod
    def usual(cls, num_ranks: int) -> Condition:
        """Make the condition in which all is as fast as usual."""
        ones = (1.0,) * num_ranks
        return cls(ones, ones, ones, (1.0, 1.0))

    def leave(self, scale_up: float, scale_out: float) -> Condition:
        """Leave a share of the rate of all links inside domains and of all between, where other
        traffic takes the rest.
        """
        return replace(
            self,
            scale_up_R=tuple(share * scale_up for share in self.scale_up_R),
            scale_out_R=tuple(share * scale_out for share in self.scale_out_R),
            shared=(self.shared[0] * scale_up, self.shared[1] * scale_out),
        )

    def speed_up_links(self) -> Condition:
        """Make all links as fast as usual, and leave GPUs as they are."""
        usual = Condition.usual(len(self.compute_R))
        return replace(usual, compute_R=self.compute_R, accelerator_R=self.accelerator_R)

    @property
    def is_usual(self) -> bool:
        """Whether all is as fast as usual."""
        every = (*self.compute_R, *self.scale_up_R, *self.scale_out_R, *self.shared)
        return self.accelerator_R is None and all(share == 1.0 for share in every)


def find_condition(
    degraded: Sequence[Degraded], machines: Machines, replica: int, at_s: float
) -> Condition | None:
    """Find the condition of a replica at a time; ``None`` where all is as usual. What is named
    twice is slower by both.

    Args:
        machines: GPUs of the replica's pool.
    """
    first = machines.first_gpu + replica * machines.gpus_per_replica
    gpus = np.arange(first, first + machines.gpus_per_replica)
    shares_3R, shared = np.ones((3, len(gpus))), np.ones(2)
    for one in degraded:
        if not one.at_s <= at_s < one.until_s:
            continue
        each = np.array([one.compute, one.scale_up, one.scale_out])
        is_hit = find_hit(one, gpus, machines.gpus_per_node)
        if one.gpu is None and one.node is None:
            shared *= each[1:]
        shares_3R[:, is_hit] *= each[:, None]
    compute, up, out = (tuple(map(float, row)) for row in shares_3R)
    kinds = list_kinds(degraded, gpus, machines.gpus_per_node)
    both = float(shared[0]), float(shared[1])
    found = Condition(compute, up, out, both, kinds if any(kinds) else None)
    return None if found.is_usual else found


def place_at(plan: DeploymentPlan, machines: Machines, replica: int, at_s: float) -> Placement:
    """Find the placement that a replica's steps are priced with at a time, with all its ranks.

    Args:
        plan: of its pool.
        machines: GPUs of its pool.
    """
    condition = find_condition(plan.placement.cluster.degraded, machines, replica, at_s)
    return plan.placement if condition is None else degrade_placement(plan, condition)


def list_instants(degraded: Iterable[Degraded]) -> list[float]:
    """List the times after the start at which something becomes slower or faster, in order."""
    times = {time for one in degraded for time in (one.at_s, one.until_s)}
    return sorted(time for time in times if 0.0 < time < math.inf)


def degrade_placement(plan: DeploymentPlan, condition: Condition) -> Placement:
    """Slow the ranks and links of a replica down as its condition has it.

    Raises:
        UserError: if the topology does not say which links are whose.
    """
    whole = plan.placement
    fabric = _slow_links(whole.fabric, condition, f"{plan.name} [degraded]")
    policy = build("cost.comm", plan.spec.communication or {}, f"{plan.name} [communication]")
    slow_R = 1.0 / np.array(condition.compute_R)
    return replace(
        whole,
        fabric=fabric,
        comm=policy.prepare(fabric, whole.calibration, whole.accelerator),
        slow_R=None if (slow_R == 1.0).all() else slow_R,
        accelerator_R=condition.accelerator_R,
    )


def _slow_links(fabric: Fabric, condition: Condition, where: str) -> Fabric:
    own = {"scale_up": condition.scale_up_R, "scale_out": condition.scale_out_R}
    shared = dict(zip(own, condition.shared, strict=True))
    for kind, share_R in own.items():
        ranks = {link.rank for link in fabric.links if link.kind == kind}
        if ranks == {-1} and min(share_R) < shared[kind]:
            raise UserError(
                f"{where}: the links of its topology name no rank whose ports they are, so that "
                f"{kind} of some GPUs cannot be slower; give Link(..., rank = ...)"
            )

    def slow(link: Link) -> Link:
        share = shared[link.kind] if link.rank < 0 else own[link.kind][link.rank]
        return link._replace(bytes_per_s=link.bytes_per_s * share)

    return replace(fabric, links=tuple(map(slow, fabric.links)))


def shrink_placement(plan: DeploymentPlan, is_left_D: Bools, placed: Placed) -> Placement:
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


def _select_ranks(fabric: Fabric, ranks: Ints) -> Fabric:
    """Links of some ranks; nodes are numbered anew in their order."""

    def select(path_SRH: Ints) -> Ints:
        return np.asarray(path_SRH[np.ix_(ranks, ranks)])

    own_card_SRH = fabric.own_card_SRH
    number = {int(rank): place for place, rank in enumerate(ranks)}
    return Fabric(
        links=tuple(link._replace(rank=number.get(link.rank, -1)) for link in fabric.links),
        path_SRH=select(fabric.path_SRH),
        node_R=np.unique(fabric.node_R[ranks], return_inverse=True)[1].astype(np.int64),
        own_card_SRH=None if own_card_SRH is None else select(own_card_SRH),
    )
