"""Rebalancing at regular times, as engines' expert balancers do it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import field_validator, model_validator
from scipy.optimize import linear_sum_assignment

from simulator.base.arrays import Ints
from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.kinds import PolicyOf
from simulator.base.plugins import build, policy_class
from simulator.base.quantities import Duration, Factor, Steps
from simulator.policies.placement import Placed, PlacementPolicy
from simulator.policies.rebalancing import ExpertLoad, Migrating, list_intervals


class Periodic(Migrating):
    """Experts are placed by their load in a window that ends when they are looked at, where that
    makes the load of ranks more even.

    vLLM looks every 3,000 steps at the last 1,000 (``--eplb-config``), SGLang every 1,000 steps
    (``--eplb-rebalance-num-iterations``). Moves that keep experts where copies of them were carry
    fewer bytes and lead to the same loads.
    """

    window_s: Duration | None = None
    """Seconds before a look whose load counts; absent = all since the last look."""
    window_steps: Steps | None = None
    """Steps before a look whose load counts; absent = all since the last look."""
    placement: Annotated[Policy, PolicyOf("placement")] = {"kind": "eplb"}
    """Placement policy; of those with slots for copies, these are as many as the
    deployment has."""
    threshold: Factor = 1.0
    """Ratio of the busiest rank's load to the mean rank's in the window, as a mean over layers, at
    and above which experts are moved."""
    least_gain: Factor = 0.02
    """Least decrease of that ratio that experts are moved for."""

    @model_validator(mode="after")
    def _check_window(self) -> Periodic:
        if self.window_s is not None and self.window_s > self.every_s:
            raise ValueError(
                f"window_s ({self.window_s:g}) must be at most every_s ({self.every_s:g})"
            )
        if self.window_steps is not None and self.window_steps > (self.every_steps or 0):
            raise ValueError(
                f"window_steps ({self.window_steps}) must be at most every_steps "
                f"({self.every_steps or 'absent'})"
            )
        return self

    @field_validator("placement")
    @classmethod
    def _check_placement(cls, table: Policy) -> Policy:
        try:
            build("placement", table, "placement")
        except UserError as error:
            raise ValueError(str(error)) from None
        return table

    def looks(self) -> Iterator[float]:
        if self.every_steps is not None:
            return list_intervals(self.every_steps, self.window_steps or self.every_steps)
        return list_intervals(self.every_s, self.window_s or self.every_s)

    def decide(self, load: ExpertLoad, rng: np.random.Generator) -> Placed | None:
        at, every = load.at_s, self.every_s
        if self.every_steps is not None:
            at, every = load.num_steps, self.every_steps
        now = load.measure_imbalance(load.placed)
        if _begins_window(at, every) or not load.num_tokens or now < self.threshold:
            return None
        table = dict(self.placement)
        num_slots = load.placed.expert_LP.shape[1]
        fields = policy_class("placement", table["kind"], "rebalancing placement").model_fields
        if "num_slots" in fields and num_slots > load.load_LE.shape[1]:
            table["num_slots"] = num_slots
        elif table == {"kind": "eplb"} and num_slots % load.placed.num_ranks:
            table = {"kind": "greedy"}  # without copies they do the same
        policy: PlacementPolicy = build("placement", table, "rebalancing placement")
        placed = policy.place(load.load_LE, load.placed.num_ranks, rng)
        if now - load.measure_imbalance(placed) < self.least_gain:
            return None
        return keep_where_alike(load.placed, placed)


def _begins_window(at: float, every: float) -> bool:
    """Whether a look is at the beginning of a window, not at its end."""
    passed = at % every
    return passed > 1e-9 * every and every - passed > 1e-6


def keep_where_alike(before: Placed, after: Placed) -> Placed:
    """Give each rank the new set of experts that it has most of, layer by layer: ranks are alike,
    so loads are the same, and fewer weights travel. The pairing is optimal (the assignment problem,
    Kuhn 1955).

    A layer whose ranks have different numbers of slots stays as it is.
    """
    rank_LP = after.rank_LP.copy()
    for layer, (expert_P, rank_P) in enumerate(zip(after.expert_LP, after.rank_LP, strict=True)):
        if len(set(np.bincount(rank_P, minlength=after.num_ranks).tolist())) > 1:
            continue
        has_RE = _list_holders(before.expert_LP[layer], before.rank_LP[layer], after.num_ranks)
        wants_RE = _list_holders(expert_P, rank_P, after.num_ranks)
        num_experts = max(has_RE.shape[1], wants_RE.shape[1])
        shared_RR = _pad(wants_RE, num_experts) @ _pad(has_RE, num_experts).T
        new_R, old_R = linear_sum_assignment(shared_RR, maximize=True)
        name_R = np.empty(after.num_ranks, dtype=np.int64)
        name_R[new_R] = old_R
        rank_LP[layer] = name_R[rank_P]
    order_LP = np.argsort(rank_LP, axis=1, kind="stable")
    return Placed(
        np.take_along_axis(after.expert_LP, order_LP, axis=1),
        np.take_along_axis(rank_LP, order_LP, axis=1),
        after.num_ranks,
    )


def _list_holders(expert_P: Ints, rank_P: Ints, num_ranks: int) -> Ints:
    """Whether each rank has each expert, 0 or 1, ``[R, E]``."""
    has_RE = np.zeros((num_ranks, int(expert_P.max()) + 1), dtype=np.int64)
    has_RE[rank_P, expert_P] = 1
    return has_RE


def _pad(has_RE: Ints, num_experts: int) -> Ints:
    return np.pad(has_RE, ((0, 0), (0, num_experts - has_RE.shape[1])))
