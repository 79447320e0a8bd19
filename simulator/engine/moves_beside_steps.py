"""Experts that move while steps go on: both share the links of their replica.

Where ranks are simulated they share them as any two exchanges do. At the ``step`` fidelity steps
are priced with what the weights leave of the wires, and each link carries weights but for the time
that it would carry the steps' tokens alone: two fluids that need a link fully have half of it each,
for as long as the tokens take twice their time.
"""

from __future__ import annotations

import numpy as np
from simpy.events import AllOf, ProcessGenerator

from simulator.cost.comm import Exchange
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.deployment.placement import Placement
from simulator.engine.instants import CHANGE
from simulator.engine.moving_experts import MovingExperts
from simulator.engine.pool import PoolState
from simulator.engine.rebalancing import list_traffic
from simulator.engine.run import Run
from simulator.engine.state import Floats
from simulator.engine.step_log import DECODES, LOG_COLUMNS, ROW_STEPS
from simulator.policies.placement import Placed

_LEAST = 0.5
"""Share of a link that is left to steps' exchanges where the weights need it fully."""
_COARSE = 8
"""Parts that a link's rate is divided in: each share that is left is a state to be priced."""
_NEAR = 0.01
"""Share of the weights that counts as none left."""
_DRAWS = 16
"""Exchanges, of layers and tokens as far apart as can be, that tell how long a step's tokens are on
which wire."""
_GOLDEN = 2531
"""Tokens between the first ones of two draws: 0.618 of the pool they are taken from."""
_PREFILL, _DISPATCH, _COMBINE = (
    LOG_COLUMNS.index(name) for name in ("prefill_tokens", "dispatch_s", "combine_s")
)


def move_beside_steps(
    run: Run, place: int, experts: MovingExperts, placed: Placed
) -> ProcessGenerator:
    """Move a pool's experts behind the host's work, and place them when the last has arrived."""
    placements = run.replica_states.list_placements(place)
    traffic = {replica: list_traffic(one, placed) for replica, one in placements.items()}
    first = next(iter(traffic.values()))
    begin_s = run.instants.env.now + experts.host_s * first.num_layers
    yield run.instants.wait_until(begin_s, CHANGE)
    if begin_s > run.until_s:
        return
    exchanges = {replica: one.exchange for replica, one in traffic.items()}
    if run.wires is not None:
        carried = [run.wires.find(place, r).carry(one) for r, one in exchanges.items()]
        yield AllOf(run.instants.env, carried)
    else:
        run.run_ahead(begin_s)
        slowest = max(exchanges, key=lambda replica: exchanges[replica].alone_s)
        contending = _contend(run, place, placements[slowest], exchanges[slowest], begin_s)
        yield from contending
    now_s = run.instants.env.now
    yield run.instants.wait_until(now_s, CHANGE)
    if now_s <= run.until_s:
        run.run_ahead(now_s)
        experts.arrive(placed, now_s)


def _contend(
    run: Run, place: int, placement: Placement, exchange: Exchange, begin_s: float
) -> ProcessGenerator:
    """Let steps be priced with what the weights leave of the wires until these have arrived."""
    pool, since_s = run.state.pools[place], begin_s + exchange.latency_s
    left_L = exchange.busy_s.copy()
    run.replica_states.contend(place, exchange, _find_left(placement, exchange))
    while left_L.max(initial=0.0) > _NEAR * exchange.alone_s and since_s <= run.until_s:
        until_s = since_s + float(left_L.max())
        yield run.instants.wait_until(until_s, CHANGE)
        run.run_ahead(until_s)
        share_L = _measure_share(pool, run.log.list_rows(place, since_s), since_s, until_s)
        left_L -= (until_s - since_s) * (1.0 - share_L)
        since_s = until_s
    run.replica_states.leave_alone(place)


def _find_left(placement: Placement, exchange: Exchange) -> tuple[float, float]:
    """Find the share of their rate that is left on wires inside domains and between, where their
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
    num_replicas = max(1, int((pool.clock.counts.is_gone == 0).sum()))
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
