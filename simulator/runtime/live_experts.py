"""Experts of a deployment that runs for real, which move between its steps as its rebalancing
policy decides from the load that was seen.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.rebalancing import (
    judge_move,
    list_parts,
    moves_any,
    place_again,
    price_move,
)
from simulator.policies.contracts import decide_placement, list_looks
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import ExpertLoad, migration_rules
from simulator.results.executed import ExecutedMove
from simulator.runtime.backend import Backend
from simulator.runtime.shard import ShardStep


class LiveExperts:
    """Experts on a backend's shards."""

    def __init__(self, plan: DeploymentPlan, backend: Backend) -> None:
        """Begin with the plan's placement and no load.

        Args:
            backend: has loaded the plan's job.
        """
        self.plan = plan
        """Plan with the experts where they lie now."""
        self.moves: list[ExecutedMove] = []
        self._backend = backend
        self._looks = enumerate(list_looks(plan.serving.rebalancing))
        self._next_look = next(self._looks, None)
        self._num_tokens, self._load_LE = 0, _no_load(plan)
        self._followed_LE = _no_load(plan)
        """Load since the latest move."""
        self._unmoved: Placed | None = None
        """Placement before the latest move, until that is judged."""
        self._parts: list[Placed] = []
        """Placements on the way of a move that is made in parts."""

    def count(self, shards: Sequence[ShardStep]) -> None:
        """Add a step to the load since the last look."""
        tp = self.plan.placement.layout.tp
        for shard in shards[::tp]:
            self._num_tokens += shard.num_tokens
            self._load_LE += shard.load_LE
            self._followed_LE += shard.load_LE

    def rebalance(self, at_s: float, step: int) -> float | None:
        """Ask the policy, if it is time, and move experts as it decides; of a move in parts, move
        the next one. Returns the seconds that moving took, ``None`` where none have moved.

        Args:
            at_s: seconds of the deployment's clock.
            step: number of the next step.
        """
        if self._parts:
            return self._move(self._parts.pop(0), step)
        placement = self.plan.placement
        policy = self.plan.serving.rebalancing
        by_steps = self._counts_steps
        found = self.take_look(at_s, step)
        if found is None:
            return None
        number, look = found
        load = self._measure_load(at_s if by_steps else look)
        load = load._replace(num_steps=int(look) if by_steps else step)
        placed = decide_placement(policy, load, placement.rng("rebalancing", number))
        if placed is None or not moves_any(placement, placed):
            return None
        num_layers = migration_rules(policy).layers_per_chunk or len(placed.expert_LP)
        self._parts = list(list_parts(load.placed, placed, num_layers))
        self.moves.append(
            ExecutedMove(
                at_s=at_s,
                pool="both",
                num_experts=0,
                num_bytes=0.0,
                seconds=0.0,
                imbalance_before=load.measure_imbalance(load.placed),
                imbalance_after=load.measure_imbalance(placed),
                num_parts=len(self._parts),
                step=step,
                predicted_s=0.0,
            )
        )
        self._unmoved = load.placed
        return self._move(self._parts.pop(0), step)

    @property
    def _counts_steps(self) -> bool:
        """Whether the policy looks after so many steps, and not seconds."""
        return migration_rules(self.plan.serving.rebalancing).every_steps is not None

    def take_look(self, at_s: float, step: int) -> tuple[int, float] | None:
        """Take the latest look that is due, with its number; those before it, which came during the
        same step or move, are left out.

        Args:
            at_s: seconds of the deployment's clock.
            step: number of the next step.
        """
        found, passed = None, step if self._counts_steps else at_s
        while self._next_look is not None and self._next_look[1] <= passed:
            found, self._next_look = self._next_look, next(self._looks, None)
        return found

    def _measure_load(self, look_s: float) -> ExpertLoad:
        """Measure the load since the last look, and judge the latest move by what followed it."""
        assert self.plan.placement.experts is not None
        placed = copy.deepcopy(self.plan.placement.experts.placed)
        load = ExpertLoad(look_s, self._num_tokens, self._load_LE, placed)
        if self._unmoved is not None and self._followed_LE.any():
            followed = load._replace(load_LE=self._followed_LE)
            self.moves[-1] = judge_move(self.moves[-1], followed, self._unmoved)
            self._unmoved = None
        self._num_tokens, self._load_LE = 0, _no_load(self.plan)
        return load

    def _move(self, placed: Placed, step: int) -> float:
        """Move experts for real, and add what that took to the latest move. Returns its seconds."""
        placement, moved = self.plan.placement, self.moves[-1]
        host_s = migration_rules(self.plan.serving.rebalancing).host_s_per_layer
        unused = ExpertLoad(moved.at_s, 0, _no_load(self.plan), placed)
        priced = price_move(placement, placed, unused, moved.pool, host_s)
        began_s = time.perf_counter()
        received = self._backend.place_experts(placed, step)
        took_s = time.perf_counter() - began_s
        self.moves[-1] = replace(
            moved,
            num_experts=moved.num_experts
            + sum(one.num_experts for one in received) // placement.layout.moe_tp,
            num_bytes=moved.num_bytes + sum(one.num_bytes for one in received),
            seconds=moved.seconds + took_s,
            predicted_s=moved.predicted_s + priced.seconds,
        )
        self.plan = replace(self.plan, placement=place_again(placement, placed))
        self._followed_LE = _no_load(self.plan)
        return took_s


def _no_load(plan: DeploymentPlan) -> NDArray[np.float64]:
    moe = plan.placement.model.moe
    num_experts = 0 if moe is None else moe.num_experts
    return np.zeros((plan.placement.model.num_moe_layers, num_experts))
