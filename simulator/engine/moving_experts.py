"""Experts of a pool that move while it serves: the load that decisions are made on, and the prices
of steps behind a move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.engine.by_ranks import ByRanks
from simulator.engine.loop_state import LoopState
from simulator.engine.rebalancing import expect_load, judge_move, list_parts, price_move
from simulator.engine.replica_states import ReplicaStates
from simulator.engine.table import StepTable
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import ExpertLoad
from simulator.results.tables import ExpertsMoved

Floats = NDArray[np.float64]


class MovingExperts:
    """Experts of one pool."""

    def __init__(
        self,
        state: LoopState,
        place: int,
        by_ranks: ByRanks | None,
        states: ReplicaStates,
        fill: Callable[[], StepTable],
        moves: list[ExpertsMoved],
    ) -> None:
        """Begin to count the load.

        Args:
            place: of the pool.
            by_ranks: executor of its steps, where ranks are simulated.
            states: of all replicas, which are priced anew when experts have moved.
            fill: makes a table for the experts as they lie.
            moves: list of all moves, which those of these experts are added to.
        """
        self._state, self._place, self._by_ranks, self._fill = state, place, by_ranks, fill
        self._replica_states = states
        self._moves, self._name = moves, state.names[place]
        self._last: tuple[int, Placed] | None = None
        """Number of the latest move, and where experts lay before, until it is judged."""
        self._since_P: Floats | None = None
        """Tokens of each load profile when the latest move's experts came to lie as they do."""
        self._arrive_s = -1.0
        self._num_tokens = 0
        self._tokens_P = self._count_profiles()

    def is_moving(self, at_s: float) -> bool:
        """Whether the latest move is under way at some time."""
        return at_s < self._arrive_s

    def measure_load(self, at_s: float, num_tokens: int) -> ExpertLoad:
        """Measure the load since the last time.

        Args:
            num_tokens: tokens of all steps so far.
        """
        pool, tokens_P = self._state.pools[self._place], self._count_profiles()
        profiles, new = pool.profiles, num_tokens - self._num_tokens
        profile_LE = profiles.expect_load(tokens_P - self._tokens_P) if profiles else None
        self._num_tokens, self._tokens_P = num_tokens, tokens_P
        load = expect_load(pool.plan.placement, at_s, new, profile_LE)
        if self._last is not None and self._since_P is not None:
            followed = load
            if profiles:
                followed = load._replace(load_LE=profiles.expect_load(tokens_P - self._since_P))
            if new and followed.load_LE.any():
                number, before = self._last
                self._moves[number] = judge_move(self._moves[number], followed, before)
                self._last = None
        return load

    @property
    def host_s(self) -> float:
        """Seconds of the engine's own work for each layer that changes."""
        policy = self._state.pools[self._place].plan.serving.rebalancing
        return float(getattr(policy, "host_s_per_layer", 0.0))

    def price_move(self, placed: Placed, load: ExpertLoad) -> ExpertsMoved:
        """Price a move that is decided on a load."""
        policy = self._state.pools[self._place].plan.serving.rebalancing
        moved = self._price_slowest(placed, load)
        moved = replace(moved, stops=not getattr(policy, "asynchronous", False))
        self._last, self._since_P = (len(self._moves), load.placed), None
        self._arrive_s = load.at_s + moved.seconds if moved.stops else math.inf
        self._moves.append(moved)
        return moved

    def arrive(self, placed: Placed, at_s: float) -> None:
        """Place experts whose weights have travelled beside steps until now."""
        number, moved = len(self._moves) - 1, self._moves[-1]
        self._moves[number] = replace(moved, seconds=at_s - moved.at_s, alone_s=moved.seconds)
        self._arrive_s = at_s
        self.place(placed)

    def move_in_parts(self, placed: Placed, load: ExpertLoad) -> Iterator[float]:
        """Move experts a few layers at a time, as the policy says, and yield the seconds of each
        part when it is placed; the next one is, when the caller comes back.
        """
        whole, number = self.price_move(placed, load), len(self._moves) - 1
        policy = self._state.pools[self._place].plan.serving.rebalancing
        num_layers = getattr(policy, "layers_per_chunk", len(placed.expert_LP))
        self._arrive_s, seconds = math.inf, 0.0
        parts = list(list_parts(load.placed, placed, num_layers))
        for part in parts:
            part_s = self._price_slowest(part, load).seconds
            seconds += part_s
            self._moves[number] = replace(whole, seconds=seconds, num_parts=len(parts))
            self.place(part)
            yield part_s
        self._arrive_s = -math.inf

    def _price_slowest(self, placed: Placed, load: ExpertLoad) -> ExpertsMoved:
        """Price a move by the replica that it takes longest in, with its links to itself."""
        placements = self._replica_states.list_placements(self._place).values()
        distinct = {id(one): one for one in placements}.values()
        each = (price_move(one, placed, load, self._name, self.host_s) for one in distinct)
        return max(each, key=lambda moved: moved.seconds)

    def place(self, placed: Placed) -> None:
        """Price steps that are formed from now on with another placement."""
        pool = self._state.pools[self._place]
        pool.place_experts(placed)
        self._since_P = self._count_profiles()
        if self._by_ranks is not None:
            self._by_ranks.use_prices(pool.prices)
            self._replica_states.price_again(self._place)
        elif pool.profiles is None:
            self._state.use_table(self._place, self._fill())
            self._replica_states.price_again(self._place)
        else:
            self._replica_states.place_experts(self._place, placed)

    def _count_profiles(self) -> Floats:
        """Count the tokens of all steps so far by their load profiles, ``[P]``."""
        if self._by_ranks is not None:
            return self._by_ranks.profile_tokens.copy()
        return self._state.pool_at(self._place).table.profile_tokens.copy()
