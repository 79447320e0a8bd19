"""Experts of a pool that move while it serves: the load that decisions are made on, and the prices
of steps behind a move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from simpy.events import AllOf, ProcessGenerator

from simulator.cost.comm import Exchange
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.deployment.placement import Placement
from simulator.engine import rebalancing
from simulator.engine.by_ranks import ByRanks
from simulator.engine.loop_state import AGAIN, CHANGE
from simulator.engine.pool import PoolState
from simulator.engine.replica_states import Run
from simulator.engine.state import Floats
from simulator.engine.step_log import DECODES, LOG_COLUMNS, ROW_STEPS
from simulator.engine.table import StepTable
from simulator.policies.contracts import decide_placement
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import ExpertLoad, migration_rules
from simulator.results.tables import ExpertsMoved


class MovingExperts:
    """Experts of one pool: the load on them, and the moves that its policy decides on."""

    def __init__(
        self, run: Run, place: int, by_ranks: ByRanks | None, fill: Callable[[], StepTable]
    ) -> None:
        """Begin to count the load.

        Args:
            place: of the pool.
            by_ranks: executor of its steps, where ranks are simulated.
            fill: makes a table for the experts as they lie.
        """
        self._run, self._place, self._by_ranks, self._fill = run, place, by_ranks, fill
        self._pool = run.state.pools[place]
        self._policy = self._pool.plan.serving.rebalancing
        self._rules = migration_rules(self._policy)
        self._last: tuple[int, Placed] | None = None
        """Number of the latest move, and where experts lay before, until it is judged."""
        self._since_P: Floats | None = None
        """Tokens of each load profile when the latest move's experts came to lie as they do."""
        self._arrive_s = -1.0
        self._num_tokens = 0
        self._tokens_P = self._count_profiles()

    def follow(self, looks: Iterator[float]) -> ProcessGenerator:
        """Ask the policy at its times, or after its steps, and move experts as it decides."""
        run, place, env = self._run, self._place, self._run.instants.env
        by_steps = self._rules.every_steps is not None
        for number, look in enumerate(looks):
            if not by_steps:
                at_s = yield run.instants.wait_until(look, CHANGE)
            elif run.step_looks.count(place) < look:
                at_s = yield run.step_looks.wait_for(place, int(look))
            else:
                continue
            if at_s > run.until_s:
                return
            run.run_ahead(at_s)
            if at_s < self._arrive_s or run.replica_states.has_no_whole(place):
                continue
            num_steps = int(look) if by_steps else run.step_looks.count(place)
            load = self._measure_load(at_s)._replace(num_steps=num_steps)
            placement = self._pool.plan.placement
            placed = decide_placement(self._policy, load, placement.rng("rebalancing", number))
            if placed is None or not rebalancing.moves_any(placement, placed):
                continue
            moved = self._begin_move(placed, load)
            if (num_layers := self._rules.layers_per_chunk) is not None:
                env.process(self._move_in_parts(placed, load, num_layers))
            elif moved.stops:
                self._lay(placed)
                run.pause_all(place, moved.seconds)
            else:
                env.process(self._move_beside_steps(placed))

    def _measure_load(self, at_s: float) -> ExpertLoad:
        """Measure the load since the last time, and judge the latest move by what followed it."""
        pool, tokens_P = self._pool, self._count_profiles()
        num_tokens = self._run.log.count_tokens(self._place, pool.plan.placement.drafts.num_tokens)
        profiles, new = pool.profiles, num_tokens - self._num_tokens
        profile_LE = profiles.expect_load(tokens_P - self._tokens_P) if profiles else None
        self._num_tokens, self._tokens_P = num_tokens, tokens_P
        load = rebalancing.expect_load(pool.plan.placement, at_s, new, profile_LE)
        if self._last is not None and self._since_P is not None:
            followed = load
            if profiles:
                followed = load._replace(load_LE=profiles.expect_load(tokens_P - self._since_P))
            if new and followed.load_LE.any():
                (number, before), moves = self._last, self._run.rebalances
                moves[number] = rebalancing.judge_move(moves[number], followed, before)
                self._last = None
        return load

    def _count_profiles(self) -> Floats:
        """Count the tokens of all steps so far by their load profiles, ``[P]``."""
        counted = self._by_ranks or self._pool.table
        return counted.profile_tokens.copy()

    def _begin_move(self, placed: Placed, load: ExpertLoad) -> ExpertsMoved:
        """Price a move that is decided on a load, and note it."""
        moves = self._run.rebalances
        moved = self._price_slowest(placed, load)
        moved = replace(moved, stops=not self._rules.asynchronous)
        self._last, self._since_P = (len(moves), load.placed), None
        self._arrive_s = load.at_s + moved.seconds if moved.stops else math.inf
        moves.append(moved)
        return moved

    def _price_slowest(self, placed: Placed, load: ExpertLoad) -> ExpertsMoved:
        """Price a move by the replica that it takes longest in, with its links to itself."""
        placements = self._run.replica_states.list_placements(self._place).values()
        distinct, name = {id(one): one for one in placements}, self._run.state.names[self._place]
        each = (
            rebalancing.price_move(one, placed, load, name, self._rules.host_s_per_layer)
            for one in distinct.values()
        )
        return max(each, key=lambda moved: moved.seconds)

    def _lay(self, placed: Placed) -> None:
        """Price steps that are formed from now on with another placement."""
        states = self._run.replica_states
        self._pool.place_experts(placed)
        self._since_P = self._count_profiles()
        if self._by_ranks is None and self._pool.profiles is not None:
            states.place_experts(self._place, placed)
            return
        if self._by_ranks is None:
            self._pool.table = self._fill()
        states.price_again(self._place)

    def _move_in_parts(self, placed: Placed, load: ExpertLoad, num_layers: int) -> ProcessGenerator:
        """Move experts so many layers at a time, as the policy says; every replica that has
        requests forms a step between two parts.
        """
        run, moves, number = self._run, self._run.rebalances, len(self._run.rebalances) - 1
        self._arrive_s, seconds = math.inf, 0.0
        parts = list(rebalancing.list_parts(load.placed, placed, num_layers))
        for part in parts:
            part_s = self._price_slowest(part, load).seconds
            seconds += part_s
            moves[number] = replace(moves[number], seconds=seconds, num_parts=len(parts))
            self._lay(part)
            ended = yield AllOf(run.instants.env, run.pause_all(self._place, part_s))
            yield run.instants.wait_until(max(ended.values()), AGAIN)
            run.run_ahead(max(ended.values()))
        self._arrive_s = -math.inf

    def _move_beside_steps(self, placed: Placed) -> ProcessGenerator:
        """Move experts behind the host's work while steps go on, and place them when the last has
        arrived.
        """
        run, place = self._run, self._place
        placements = run.replica_states.list_placements(place)
        traffic = {
            replica: rebalancing.list_traffic(one, placed) for replica, one in placements.items()
        }
        first = next(iter(traffic.values()))
        begin_s = run.instants.env.now + self._rules.host_s_per_layer * first.num_layers
        yield run.instants.wait_until(begin_s, CHANGE)
        if begin_s > run.until_s:
            return
        if run.wires is not None:
            carried = [run.wires.find(place, r).carry(one.exchange) for r, one in traffic.items()]
            yield AllOf(run.instants.env, carried)
        else:
            run.run_ahead(begin_s)
            slowest = max(traffic, key=lambda replica: traffic[replica].exchange.alone_s)
            exchange = traffic[slowest].exchange
            yield from _contend(run, place, placements[slowest], exchange, begin_s)
        now_s = run.instants.env.now
        yield run.instants.wait_until(now_s, CHANGE)
        if now_s <= run.until_s:
            run.run_ahead(now_s)
            moved = run.rebalances[-1]
            alone_s = moved.seconds
            run.rebalances[-1] = replace(moved, seconds=now_s - moved.at_s, alone_s=alone_s)
            self._arrive_s = now_s
            self._lay(placed)


# Experts that move while steps go on: both share the links of their replica.
#
# Where ranks are simulated they share them as any two exchanges do. At the ``step`` fidelity steps
# are priced with what the weights leave of the links, and each link carries weights but for the
# time that it would carry the steps' tokens alone: two fluids that need a link fully have half of
# it each, for as long as the tokens take twice their time.


_LEAST = 0.5
"""Share of a link that is left to steps' exchanges where the weights need it fully."""
_COARSE = 8
"""Parts that a link's rate is divided in: each share that is left is a state to be priced."""
_NEAR = 0.01
"""Share of the weights that counts as none left."""
_DRAWS = 16
"""Exchanges, of layers and tokens as far apart as can be, that tell how long a step's tokens are on
which link."""
_GOLDEN = 2531
"""Tokens between the first ones of two draws: 0.618 of the pool they are taken from."""
_PREFILL, _DISPATCH, _COMBINE = (
    LOG_COLUMNS.index(name) for name in ("prefill_tokens", "dispatch_s", "combine_s")
)


def _contend(
    run: Run, place: int, placement: Placement, exchange: Exchange, begin_s: float
) -> ProcessGenerator:
    """Let steps be priced with what the weights leave of the links until these have arrived."""
    pool, since_s = run.state.pools[place], begin_s + exchange.latency_s
    left_L = exchange.busy_s.copy()
    run.replica_states.contend(place, (exchange, _find_left(placement, exchange)))
    while left_L.max(initial=0.0) > _NEAR * exchange.alone_s and since_s <= run.until_s:
        until_s = since_s + float(left_L.max())
        yield run.instants.wait_until(until_s, CHANGE)
        run.run_ahead(until_s)
        share_L = _measure_share(pool, run.log.list_rows(place, since_s), since_s, until_s)
        left_L -= (until_s - since_s) * (1.0 - share_L)
        since_s = until_s
    run.replica_states.contend(place, None)


def _find_left(placement: Placement, exchange: Exchange) -> tuple[float, float]:
    """Find the share of their rate that is left on links inside domains and between, where their
    busiest is.
    """
    found = []
    for kind in ("scale_up", "scale_out"):
        is_own = np.array([link.kind == kind for link in placement.fabric.links])
        busiest_s = float(exchange.busy_s[is_own].max(initial=0.0)) if exchange.busy_s.size else 0.0
        taken = busiest_s / float(exchange.busy_s.max()) if busiest_s else 0.0
        found.append(max(_LEAST, round((1 - taken) * _COARSE) / _COARSE))
    return found[0], found[1]


def _measure_share(pool: PoolState, rows: Floats, since_s: float, until_s: float) -> Floats:
    """Measure the share of some time that each link carries tokens of a replica's steps for, mean
    over replicas, ``[links]``.
    """
    num_links = len(pool.plan.placement.fabric.links)
    starts, ends = rows[:, 0], rows[:, 0] + rows[:, 1]
    share_S = np.clip(np.minimum(ends, until_s) - np.maximum(starts, since_s), 0.0, None)
    share_S /= np.maximum(rows[:, 1], 1e-12)
    num_replicas = max(1, int((pool.ranks.counts.is_gone == 0).sum()))
    exchanging_s = float((share_S * (rows[:, _DISPATCH] + rows[:, _COMBINE])).sum())
    if exchanging_s == 0.0:
        return np.zeros(num_links)
    num_steps = float(rows[:, ROW_STEPS].sum())
    tokens = int((rows[:, _PREFILL] + rows[:, DECODES]).sum() / num_steps)
    carried_L = exchanging_s * _measure_on_wires(pool, tokens) / num_replicas
    return np.minimum(carried_L / (until_s - since_s), 1.0)


def _measure_on_wires(pool: PoolState, num_tokens: int) -> Floats:
    """Measure the share of the time of a step's exchanges, which have half of the links, that each
    link would carry their bytes for with all of it, ``[links]``.
    """
    layout, num_layers = pool.plan.placement.layout, pool.plan.placement.model.num_moe_layers
    tokens_d = np.full(layout.attention_dp, max(1, num_tokens // layout.attention_dp))
    places = [(draw * num_layers // _DRAWS, draw * _GOLDEN % POOL_TOKENS) for draw in range(_DRAWS)]
    steps = pool.prices.experts.steps(tokens_d, places)
    each = [one for step in steps for one in (step.dispatch, step.combine) if one.busy_s.size]
    if not each:
        return np.zeros(len(pool.plan.placement.fabric.links))
    contended_s = sum(
        float(one.busy_s.max()) / _LEAST + one.latency_s + one.stagger_s for one in each
    )
    carried_L: Floats = np.sum([one.busy_s for one in each], axis=0)
    return carried_L / contended_s
