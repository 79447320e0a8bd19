"""States of replicas that differ from the usual one, in which all ranks serve and are as fast as
usual: their prices, and when slower GPUs and links become so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from simpy.events import Process, ProcessGenerator

from simulator.cost.comm import Exchange
from simulator.deployment.conditions import (
    Condition,
    degrade_placement,
    find_condition,
    list_instants,
    shrink_placement,
)
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.by_ranks import Fidelity
from simulator.engine.links import SharedWires
from simulator.engine.loop_state import CHANGE, Instants, LoopState, StepLooks
from simulator.engine.rebalancing import expect_load, find_part_bytes
from simulator.engine.result_rows import StepLog
from simulator.engine.state import Ranks
from simulator.engine.table import StepTable, start_table
from simulator.policies.contracts import shrink_experts
from simulator.policies.placement import Placed
from simulator.policies.recovery import Loss
from simulator.results.tables import ExpertsMoved
from simulator.step.mixes import Mixes
from simulator.step.prices import Prices

# Ranks that are left of a replica that has lost some, and the experts that they load.


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


def place_on_left(
    plan: DeploymentPlan, before: RanksLeft | None, lost_D: NDArray[np.bool_]
) -> RanksLeft | None:
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
    placed = shrink_experts(plan.serving.recovery, loss)
    return None if placed is None else RanksLeft(np.flatnonzero(~lost_D), placed)


def count_loaded_bytes(placement: Placement, before: RanksLeft | None, left: RanksLeft) -> float:
    """Count the bytes of experts that the rank which lacks most of them loads when a replica goes
    on with the ranks that are left.

    Args:
        placement: of the whole replica.
        before: ranks that it had until then, where it had lost some already.
    """
    experts, layout = placement.experts, placement.layout
    assert experts is not None
    had, had_R = experts.placed, np.arange(layout.num_ranks)
    if before is not None:
        had, had_R = before.placed, before.list_ranks(layout.tp)
    left_R = left.list_ranks(layout.tp)
    loaded_R = np.zeros(len(left_R))
    for layer in range(len(had.expert_LP)):
        held = _list_held(had, layer, had_R)
        for rank, _ in _list_held(left.placed, layer, left_R) - held:
            loaded_R[np.searchsorted(left_R, rank)] += 1
    return float(loaded_R.max() * find_part_bytes(placement))


def _list_held(placed: Placed, layer: int, ranks: NDArray[np.int64]) -> set[tuple[int, int]]:
    """List the ranks, by their number in the whole replica, with the experts that they hold."""
    held = ranks[placed.rank_LP[layer]].tolist()
    return set(zip(held, placed.expert_LP[layer].tolist(), strict=True))


# States of a replica in its pool's table of prices: all ranks as fast as usual, some lost, or some
# slower.


_OF_STATES = StepTable._fields[: StepTable._fields.index("is_filled") + 1]
"""Arrays of a table whose first axis are states."""


def add_state(table: StepTable, mixes: Mixes, left_d: NDArray[np.int64] | None = None) -> StepTable:
    """Add a state of a replica to a table, whose entries for it are filled when a step needs them;
    no other table shares its arrays then.

    Args:
        left_d: data-parallel groups that are left in it; by default all.
    """
    other = start_table(mixes)
    if left_d is not None:
        num_states = len(other.sizes)
        slow = np.ones((num_states, *table.slow.shape[1:]))
        kind, group_class = np.zeros((2, num_states, table.kind.shape[1]), dtype=np.int64)
        slow[:, left_d], kind[:, left_d] = other.slow, other.kind
        group_class[:, left_d] = other.group_class
        other = other._replace(slow=slow, kind=kind, group_class=group_class)
    stacked: dict[str, Any] = {
        name: _stack(getattr(table, name), getattr(other, name)) for name in _OF_STATES
    }
    return table._replace(**stacked)


def keep_usual_state(table: StepTable) -> StepTable:
    """Drop all states of replicas but the usual one."""
    count = int(table.group_class[0].max()) + 1
    return table._replace(**{name: getattr(table, name)[:count] for name in _OF_STATES})


def _stack(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """Append the states of ``new`` to those of ``old``, in an array as large as the larger."""
    missing = [wide - own for own, wide in zip(old.shape[1:], new.shape[1:], strict=True)]
    room = [(0, max(0, more)) for more in missing]
    fill = [(0, max(0, -more)) for more in missing]
    return np.concatenate([np.pad(old, [(0, 0), *room]), np.pad(new, [(0, 0), *fill])])


# Part of a run's timeline that changes of a deployment need.


class Run(Protocol):
    """Run while its deployment changes."""

    state: LoopState
    instants: Instants
    until_s: float
    """Time after which nothing happens any more."""
    step_looks: StepLooks
    """Looks at pools after some steps."""
    log: StepLog
    """Steps so far."""
    replica_states: ReplicaStates
    wires: SharedWires | None
    """Links of all replicas, where ranks are simulated."""
    rebalances: list[ExpertsMoved]
    """Moves of experts so far, in order of time."""

    def run_ahead(self, until_s: float) -> None:
        """Let everything happen up to a time, that instant included."""

    def cut_step(self, place: int, replica: int, at_s: float) -> bool:
        """Cut a replica's step in flight short. Returns whether there was one."""

    def pause(self, place: int, replica: int, seconds: float) -> ProcessGenerator:
        """Keep a replica from forming steps for a while, behind the step in flight."""

    def pause_all(self, place: int, seconds: float) -> list[Process]:
        """Pause all replicas of a pool."""

    def look_soon(self) -> None:
        """Go on at this instant once all has changed."""

    def scale_soon(self) -> None:
        """Launch and drain replicas at this instant once all has changed, where there are too few
        or too many.
        """


_Replica = tuple[int, int]
"""Place of a pool, and number of a replica in it."""


@dataclass(frozen=True)
class PricedState:
    """Prices of a replica's steps in a state of its own."""

    left: RanksLeft | None
    """Ranks that are left of it; ``None`` for all."""
    prices: Prices
    mixes: Mixes
    number: int
    """Number of the state in the pool's table, where ranks are not simulated."""


class ReplicaStates:
    """States of all replicas of all pools."""

    def __init__(self, state: LoopState, fidelity: Fidelity) -> None:
        """Begin with all ranks of all replicas, as fast as usual."""
        self._state, self._fidelity = state, fidelity
        self._left: dict[_Replica, RanksLeft | None] = {}
        self._conditions: dict[_Replica, Condition | None] = {}
        self.beside: dict[int, tuple[Exchange, tuple[float, float]] | None] = {}
        """Other traffic of each of a pool's replicas, by the pool's place, and the shares of their
        rate that it leaves on links inside domains and between."""
        self._priced: dict[_Replica, PricedState | None] = {}
        self._known: dict[tuple[object, ...], PricedState] = {}
        """States that were priced once, by place of the pool, ranks that are left and condition."""

    def find(self, place: int, replica: int) -> PricedState | None:
        """Find the state of a replica; ``None`` for the usual one."""
        return self._priced.get((place, replica))

    def find_left(self, place: int, replica: int) -> RanksLeft | None:
        """Find the ranks that are left of a replica; ``None`` for all."""
        return self._left.get((place, replica))

    def ranks_of(self, place: int, replica: int) -> Ranks:
        """Ranks that are left of a replica, to read a formed step from."""
        ranks, left = self._state.pools[place].ranks_of(replica), self.find_left(place, replica)
        if left is None:
            return ranks
        own = [one[left.left_d] for one in ranks.by_rank]
        return Ranks._make([*own, ranks.counts, ranks.gap_counts])

    def has_no_whole(self, place: int) -> bool:
        """Whether every replica of a pool has lost ranks."""
        replicas = range(self._state.pools[place].num_replicas)
        return all(self.find_left(place, replica) for replica in replicas)

    def shrink(self, place: int, replica: int, left: RanksLeft | None) -> None:
        """Let a replica go on with some of its ranks, or with all."""
        self._left[place, replica] = left
        self._use(place, replica)

    def list_instants(self) -> list[float]:
        """List the times after the start at which something becomes slower or faster."""
        clusters = [pool.plan.placement.cluster for pool in self._state.pools]
        return list_instants(one for cluster in clusters for one in cluster.degraded)

    def degrade_all(self, at_s: float) -> None:
        """Make GPUs and links of all replicas as fast as they are at a time."""
        for place, pool in enumerate(self._state.pools):
            degraded = pool.plan.placement.cluster.degraded
            machines = self._state.plan.machines[self._state.names[place]]
            for replica in range(pool.num_replicas) if degraded else ():
                condition = find_condition(degraded, machines, replica, at_s)
                if condition != self._conditions.get((place, replica)):
                    self._conditions[place, replica] = condition
                    self._use(place, replica)

    def contend(self, place: int, beside: tuple[Exchange, tuple[float, float]] | None) -> None:
        """Let other traffic on the links of a pool's replicas leave shares of their rate, inside
        domains and between; ``None`` gives them all of their links again.
        """
        self.beside[place] = beside
        self._use_all(place)

    def price_alone(self, place: int, replica: int) -> Prices:
        """Price a replica's steps as its ranks and their condition are, with all of its links."""
        left, condition = self._left.get((place, replica)), self._conditions.get((place, replica))
        pool = self._state.pools[place]
        if left is None and condition is None:
            return pool.prices
        return pool.price_placement(self._place_ranks(place, left, condition))

    def place_experts(self, place: int, placed: Placed) -> None:
        """Keep the prices of a pool's states, which hold for any placement of experts in as many
        slots, and add up the loads of ranks anew; those of replicas that have lost ranks stay.
        """
        pool, table = self._state.pools[place], self._state.pools[place].table
        assert pool.profiles is not None
        loads, load_YPR = table.profile_loads.copy(), pool.mixes.load_YPR
        loads[_list_states(table, 0), :, :, : load_YPR.shape[2]] = load_YPR
        for key, one in self._known.items():
            if key[0] == place and one.left is None:
                mixes = one.mixes.place(pool.profiles, placed)
                self._known[key] = replace(one, mixes=mixes)
                loads[_list_states(table, one.number), :, :, : load_YPR.shape[2]] = load_YPR
        pool.table = table._replace(profile_loads=loads)
        self._use_all(place)

    def price_again(self, place: int) -> None:
        """Price the states of a pool's replicas anew, since its experts have moved."""
        self._known = {key: one for key, one in self._known.items() if key[0] != place}
        if self._fidelity == "step":
            pool = self._state.pools[place]
            pool.table = keep_usual_state(pool.table)
        self._use_all(place)

    def list_placements(self, place: int) -> dict[int, Placement]:
        """List the placements of a pool's experts on links as fast as each replica has them, of
        replicas with all of their ranks, as long as there are any.
        """
        pool = self._state.pools[place]
        known: dict[Condition | None, Placement] = {None: pool.plan.placement}
        found = {}
        for replica in range(pool.num_replicas):
            condition = self._conditions.get((place, replica))
            if condition is not None and condition not in known:
                known[condition] = degrade_placement(pool.plan, condition)
            found[replica] = known[condition]
        whole = {one: own for one, own in found.items() if not self.find_left(place, one)}
        return whole or found

    def _use_all(self, place: int) -> None:
        for replica in range(self._state.pools[place].num_replicas):
            self._use(place, replica)

    def _use(self, place: int, replica: int) -> None:
        """Price a replica's steps from now on as its ranks and their condition are."""
        key, pool = (place, replica), self._state.pools[place]
        left, condition = self._left.get(key), self._conditions.get(key)
        if beside := self.beside.get(place):
            usual = condition or Condition.usual(pool.plan.placement.layout.num_ranks)
            condition = usual.leave(*beside[1])
        is_usual = left is None and condition is None
        found = self._priced[key] = None if is_usual else self._price(place, left, condition)
        pool.ranks.counts.price_state[replica] = found.number if found else 0

    def _price(
        self, place: int, left: RanksLeft | None, condition: Condition | None
    ) -> PricedState:
        key = place, left and left.key, condition
        if key in self._known:
            return self._known[key]
        pool = self._state.pools[place]
        prices = pool.price_placement(self._place_ranks(place, left, condition))
        table, mixes = self._state.pools[place].table, pool.list_mixes(prices)
        found = PricedState(left, prices, mixes, len(table.sizes))
        if self._fidelity == "step":
            added = add_state(table, mixes, None if left is None else left.left_d)
            self._state.pools[place].table = added
        self._known[key] = found
        return found

    def _place_ranks(
        self, place: int, left: RanksLeft | None, condition: Condition | None
    ) -> Placement:
        """Make the placement of the ranks that are left, on links as fast as they are."""
        plan = self._state.pools[place].plan
        placement = plan.placement
        if condition is not None:
            placement = degrade_placement(plan, condition)
        if left is not None:
            is_left_D = np.isin(np.arange(placement.layout.attention_dp), left.left_d)
            slowed = replace(plan, placement=placement)
            placement = shrink_placement(slowed, is_left_D, left.placed)
        return placement


def _list_states(table: StepTable, number: int) -> slice:
    """List the states of a table that begin with one: of each class of groups."""
    return slice(number, number + int(table.group_class[number].max()) + 1)


# GPUs and links that become slower during a run, and as fast as usual again.


def degrade(run: Run, times: Sequence[float]) -> ProcessGenerator:
    """Make GPUs and links as fast as they are from some times on, which are in order."""
    for at_s in times:
        yield run.instants.wait_until(at_s, CHANGE)
        if at_s > run.until_s:
            return
        run.run_ahead(at_s)
        run.replica_states.degrade_all(at_s)
