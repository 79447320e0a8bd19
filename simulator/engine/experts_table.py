"""Routed experts' part of the ``step`` fidelity's table: each entry is filled by some runs of MoE
layers at the ``rank`` fidelity.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit
from simulator.cost.comm import Exchange
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.engine.fabric import drain_links, find_ends, largest
from simulator.engine.state import Floats, Ints
from simulator.policies.dispatch import limits_of
from simulator.policies.overflow import list_jumps
from simulator.results.phases import STEP_PHASES
from simulator.results.tables import OverflowByLayer
from simulator.step.expert_prices import ExpertStep, find_imbalance
from simulator.step.operations import expert_operations
from simulator.step.overlap import first_half, interleave
from simulator.step.prices import Prices
from simulator.step.program import Busy, Finish, Operation, PricedBatch, Start, Together

# Execution of all ranks of a step in one compiled loop, for programs in which every exchange joins
# all ranks: most of the time of filling tables.
#
# Its times equal those of :mod:`simulator.engine.by_ranks`, which a test checks, without events:
# each rank's computation is added to a vector of clocks, and exchanges in flight, which may share
# the links, are advanced only as far as a rank waits for one.


_BUSY, _START, _FINISH = 0, 1, 2
"""Kinds of operations in compiled code."""
_PHASES = {phase: number for number, phase in enumerate(STEP_PHASES)}


class Lockstep:
    """Program of a step, prepared for running."""

    def __init__(self, program: list[Operation], num_ranks: int) -> None:
        orders: list[tuple[int, int, int]] = []
        seconds: list[NDArray[np.float64]] = []
        exchanges: list[Exchange] = []
        flights: dict[int, int] = {}
        for operation in program:
            if isinstance(operation, Busy):
                orders.append((_BUSY, _PHASES[operation.phase], len(seconds)))
                seconds.append(operation.seconds_R)
                continue
            started = operation.start if isinstance(operation, Finish) else operation
            number = started.number if isinstance(started, Start) else -1
            if not isinstance(operation, Finish):
                flights[number] = len(exchanges)
                orders.append((_START, _PHASES[started.phase], flights[number]))
                exchanges.append(operation.exchanges[0])
            if not isinstance(operation, Start):
                orders.append((_FINISH, _PHASES[started.phase], flights[number]))
        delays = [(way.stagger_s, way.latency_s) for way in exchanges]
        num_links = max((way.busy_s.size for way in exchanges), default=0)
        busy_FL = np.zeros((len(exchanges), num_links))
        for busy_L, way in zip(busy_FL, exchanges, strict=True):
            busy_L[: way.busy_s.size] = way.busy_s
        self._program = (
            np.array(orders, dtype=np.int64).reshape(-1, 3),
            np.array(seconds, dtype=np.float64).reshape(-1, num_ranks),
            np.array(delays, dtype=np.float64).reshape(-1, 2),
            busy_FL,
        )

    def run(self, attention: float = 1.0) -> dict[str, float]:
        """Seconds of the program by phase, mean over ranks, including the wait for the last rank at
        its end.

        Args:
            attention: what the seconds of that phase are multiplied by.
        """
        factor_P = np.ones(len(STEP_PHASES))
        factor_P[_PHASES["attention"]] = attention
        phases_P = _run(*self._program, factor_P, _PHASES["wait"])
        return dict(zip(STEP_PHASES, phases_P.tolist(), strict=True))


@jit
def _run(
    orders_O3: Any, seconds_BR: Any, delays_F2: Any, busy_FL: Any, factor_P: Any, wait: int
) -> Any:
    num_flights, num_ranks = len(busy_FL), seconds_BR.shape[1]
    phases_P = np.zeros(len(factor_P))
    clock_R = np.zeros(num_ranks)
    started_F = np.zeros(num_flights)
    begins_F = np.zeros(num_flights)
    over_F = np.full(num_flights, np.inf)
    left_FL = busy_FL.copy()
    open_F = np.zeros(num_flights, dtype=np.bool_)
    now_s = 0.0
    for kind, phase, index in orders_O3:
        if kind == _BUSY:
            for rank in range(num_ranks):
                seconds = seconds_BR[index, rank] * factor_P[phase]
                clock_R[rank] += seconds
                phases_P[phase] += seconds / num_ranks
        elif kind == _START:
            started_F[index] = largest(clock_R) + delays_F2[index, 0]
            begins_F[index] = started_F[index] + delays_F2[index, 1]
            open_F[index] = True
        else:
            now_s = _bring_over(index, now_s, begins_F, over_F, open_F, left_FL)
            for rank in range(num_ranks):
                here_s = clock_R[rank]
                over_s = max(here_s, over_F[index])
                begun_s = min(max(started_F[index], here_s), over_s)
                phases_P[wait] += (begun_s - here_s) / num_ranks
                phases_P[phase] += (over_s - begun_s) / num_ranks
                clock_R[rank] = over_s
    phases_P[wait] += largest(clock_R) - clock_R.sum() / num_ranks
    return phases_P


@jit
def _bring_over(
    flight: int, now_s: float, begins_F: Any, over_F: Any, open_F: Any, left_FL: Any
) -> float:
    """Advance exchanges that share the links until ``flight`` has ended. Returns the time at which
    it ends.

    Args:
        left_FL: seconds that each exchange would still need of each link by itself; changed.
    """
    while open_F[flight]:
        num_flowing, next_s = 0, np.inf
        flowing_F = np.empty(len(open_F), dtype=np.int64)
        for other in range(len(open_F)):
            if not open_F[other]:
                continue
            if begins_F[other] > now_s:
                next_s = min(next_s, begins_F[other])
            elif largest(left_FL[other]) == 0.0:  # nothing to carry
                over_F[other], open_F[other] = begins_F[other], False
            else:
                flowing_F[num_flowing] = other
                num_flowing += 1
        if not open_F[flight]:
            return now_s  # others flow on beside what starts next
        flow_FL = np.empty((num_flowing, left_FL.shape[1]))
        for place in range(num_flowing):
            for link in range(left_FL.shape[1]):  # a whole row takes two seconds to compile
                flow_FL[place, link] = left_FL[flowing_F[place], link]
        ends_F, first_s = find_ends(flow_FL), np.inf
        for place in range(num_flowing):
            first_s = min(first_s, ends_F[place])
        elapsed_s = min(first_s, next_s - now_s)
        if elapsed_s == np.inf:
            return now_s
        drain_links(flow_FL, elapsed_s)
        for place in range(num_flowing):
            other = flowing_F[place]
            for link in range(left_FL.shape[1]):
                left_FL[other, link] = flow_FL[place, link]
            if ends_F[place] <= elapsed_s * (1 + 1e-9):  # what is left of it is rounding
                over_F[other], open_F[other] = now_s + elapsed_s, False
        now_s = next_s if next_s - now_s < first_s else now_s + elapsed_s
    return now_s


EXPERT_PHASES = ("experts", "dispatch", "combine", "wait")
"""Phases of an entry's seconds, in their order."""
NUM_COLUMNS = len(EXPERT_PHASES) + 3
"""Values of an entry: seconds by phase, imbalance, bytes read, and token-expert pairs dropped."""
_GROWTHS = ((512, 1.3), (4096, 1.6), (1 << 60, 2.5))
"""Ratios of neighbouring entries' numbers of tokens, each up to a number of tokens; prices are
linear in between. Beyond some hundred tokens each expert has its share and prices are nearly
straight lines; the pool's 4,096 tokens represent larger batches in proportion."""
_SHARES = (1.0, 1.25, 1.6, 3.0, 8.0)
"""Ratios of the fullest data-parallel rank's tokens to the mean rank's."""
BESIDES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0, 4.0)
"""Ratios, with two-batch overlap, of a half's other computation in a layer with experts (mixer,
dense blocks, all-reduces) to the time of its exchanges alone; with shared experts beside the
dispatch, of theirs to its time. The time left to wait for falls along
straight lines, and to nothing where there is enough to compute."""
_DRAWN_TOKENS = 10240
"""Approximate number of tokens in all draws of an entry: many tokens average out in one draw, and
few need many draws."""
_FEWEST_DRAWS, _MOST_DRAWS = 14, 96
"""Fewest and most draws averaged in an entry, each of one layer and of tokens of its own. Between
seeds the entries of DeepSeek-V3 over 32 ranks then scatter by 0.3 % at the median and 1 % at most;
one draw of 20 layers scattered by 0.9 % and 2.5 %."""
_STARTS = 32
"""Number of systematic samples of layers, of which the most typical is taken."""


def list_entries(prices: Prices) -> tuple[Floats, Floats, Floats]:
    """List a table's ``expert_tokens``, ``expert_shares`` and ``expert_besides``."""
    layout = prices.placement.layout
    if prices.placement.experts is None:
        return np.zeros(0), np.ones(1), np.zeros(1)
    # Only tokens that travel care on which rank they are.
    most = float(layout.attention_dp if layout.travels else 1)
    shares = [*(share for share in _SHARES if share < most), most]
    totals = sorted({*_grid(prices.max_tokens * layout.attention_dp), *_edges(prices)})
    besides = BESIDES if prices.halved_layers or prices.hides_shared else (0.0,)
    return np.array(totals, dtype=np.float64), np.array(shares), np.array(besides)


def price_entry(prices: Prices, tokens_d: Ints, stream: str) -> tuple[float, Floats]:
    """Price the experts for so many tokens on each data-parallel rank, from draws of the entry's
    own (:func:`price_experts`).

    Args:
        stream: name of the random stream, of which every entry has its own.
    """
    total, fullest = int(tokens_d.sum()), int(tokens_d.max())
    rng = prices.placement.rng(stream, total, fullest)
    # More draws where a step has few tokens, which differ most.
    count = min(max(_DRAWN_TOKENS // total, _FEWEST_DRAWS), _MOST_DRAWS)
    offsets = rng.integers(POOL_TOKENS, size=count)
    layers = _choose_layers(tuple(prices.experts.imbalance_L.tolist()), count)
    return price_experts(prices, tokens_d, list(zip(layers, offsets.tolist(), strict=True)))


def _edges(prices: Prices) -> list[int]:
    """Total numbers of tokens on both sides of each change of the dispatch policy's method, and of
    each jump of what overflows.
    """
    layout, experts = prices.placement.layout, prices.placement.experts
    moe = prices.placement.model.moe
    if experts is None or moe is None:
        return []
    routers = layout.num_ranks if layout.travels else 1
    jumps = list_jumps(experts.overflow, moe.top_k, moe.num_experts, layout.ep)
    limits = limits_of(experts.dispatch) if layout.travels else ()
    ends = [(limit * routers, 1) for limit in limits] + [(at * routers, routers) for at in jumps]
    if prices.halved_layers:  # the halves pass the limit one after the other
        ends = [(at, step) for end, step in ends for at in (2 * end, 2 * end + routers)]
    most = prices.max_tokens * layout.attention_dp
    return [total for end, step in ends for total in (end, end + step) if total <= most]


def _grid(largest: int) -> list[int]:
    grid = [1, 2]
    while grid[-1] < largest:
        growth = next(ratio for limit, ratio in _GROWTHS if grid[-1] < limit)
        grid.append(min(largest, max(grid[-1] + 1, round(grid[-1] * growth))))
    return grid


def spread_tokens(total: int, share: float, num_ranks: int) -> Ints:
    """Spread ``total`` tokens over ranks: the first holds ``share`` times the mean (or as near as
    whole tokens allow), the rest are even.
    """
    fullest = min(total, max(-(-total // num_ranks), round(share * total / num_ranks)))
    tokens_d = np.zeros(num_ranks, dtype=np.int64)
    tokens_d[0] = fullest
    if num_ranks > 1:
        rest, others = total - fullest, num_ranks - 1
        tokens_d[1:] = rest // others + (np.arange(others) < rest % others)
    return tokens_d


@lru_cache(maxsize=1024)
def _choose_layers(imbalances: tuple[float, ...], count: int) -> list[int]:
    """Choose ``count`` layers that represent all of a model, some repeatedly where it has fewer.

    Layers differ in which experts are popular, and so in how unevenly ranks are loaded, which is
    nearly all that distinguishes them once a step has some hundred tokens. They are therefore
    spaced evenly in the order of their imbalance (systematic sampling), beginning where their mean
    imbalance is nearest to that of all layers: a dozen of DeepSeek-V3's 58 are then as good as all.
    """
    imbalance_L, num_layers = np.array(imbalances), len(imbalances)
    ranked = np.argsort(imbalance_L, kind="stable")
    starts = (np.arange(_STARTS) + 0.5) / _STARTS
    chosen = ranked[((np.arange(count) + starts[:, None]) * (num_layers / count)).astype(np.int64)]
    nearest = np.abs(imbalance_L[chosen].mean(axis=1) - imbalance_L.mean()).argmin()
    return sorted(chosen[nearest].tolist())


def price_experts(
    prices: Prices, tokens_d: Ints, places: Sequence[tuple[int, int]]
) -> tuple[float, Floats]:
    """Run MoE layers that represent all of the model for ``tokens_d`` tokens at the ``rank``
    fidelity, one after another.

    Args:
        places: MoE layer, and index of the first token in its pool of recorded choices.

    Returns:
        Seconds of a half's exchanges alone, and for each of :data:`BESIDES` the seconds of
            ``EXPERT_PHASES``, imbalance, bytes read and token-expert pairs dropped.
    """
    is_split = bool(prices.halved_layers) and int(tokens_d.max()) > 1
    parts = [first_half(tokens_d), tokens_d - first_half(tokens_d)] if is_split else [tokens_d]
    begins = [0, int(parts[0].sum())]
    steps = [
        prices.experts.steps(part_d, [(layer, offset + begin) for layer, offset in places])
        for part_d, begin in zip(parts, begins, strict=False)
    ]
    loads = _measure_loads(prices, parts, steps)
    num_layers = prices.placement.model.num_moe_layers
    if is_split:
        passes = _pass_through(num_layers, len(places))
        alone_s = _sum_alone(steps, ("dispatch", "combine")) / len(parts)
    else:
        passes = [range(len(places))]
        alone_s = _sum_alone(steps, ("dispatch",)) if prices.hides_shared else 0.0
    besides = BESIDES if is_split or prices.hides_shared else (0.0,)
    alone_s *= num_layers / len(places)
    rows = _run_passes(prices, steps, passes, alone_s / num_layers, besides)
    return alone_s or 1.0, np.hstack([rows, np.tile(loads, (len(rows), 1))])


def _sum_alone(steps: list[list[ExpertStep]], names: tuple[str, ...]) -> float:
    """Sum the seconds that some exchanges of each step take by themselves."""
    exchanges = (getattr(step, name) for part in steps for step in part for name in names)
    return float(sum(one.alone_s for one in exchanges))


def _measure_loads(
    prices: Prices, parts: list[Ints], steps: list[list[ExpertStep]]
) -> tuple[float, float, float]:
    """Measure the mean load imbalance, and over all layers the bytes of weights that the mean rank
    reads and the token-expert pairs dropped.
    """
    num_layers = prices.placement.model.num_moe_layers
    imbalance, read_bytes = 0.0, (len(parts) - 1) * prices.overlapped_bytes
    dropped_pairs = 0.0
    total = sum(int(part_d.sum()) for part_d in parts)
    for part_d, part in zip(parts, steps, strict=True):
        ratio_Y = find_imbalance(np.array([step.pairs_R for step in part]))
        imbalance += int(part_d.sum()) / total * float(ratio_Y.mean())
        read_bytes += float(np.mean([step.read_bytes for step in part])) * num_layers
        dropped_pairs += float(np.mean([step.dropped_pairs for step in part])) * num_layers
    return imbalance, read_bytes, dropped_pairs


def _run_passes(
    prices: Prices,
    steps: list[list[ExpertStep]],
    passes: list[Sequence[int]],
    beside_s: float,
    besides: tuple[float, ...],
) -> Floats:
    """Seconds of ``EXPERT_PHASES`` in all layers, ``[B, 4]``, from runs of draws one after another.

    Args:
        steps: of the halves, or of the whole, one a draw.
        passes: draws of each run.
        beside_s: other work in a layer, which each of ``besides`` multiplies.
    """
    rows = np.zeros((len(besides), len(EXPERT_PHASES)))
    for drawn in passes:
        programs = [
            _expert_program(prices, [part[draw] for draw in drawn], beside_s) for part in steps
        ]
        program = interleave(*programs) if len(programs) > 1 else programs[0]
        lockstep = Lockstep(program, prices.placement.layout.num_ranks)
        rows += [[run[phase] for phase in EXPERT_PHASES] for run in map(lockstep.run, besides)]
    return rows * (prices.placement.model.num_moe_layers / sum(map(len, passes)))


def _pass_through(num_layers: int, num_draws: int) -> list[Sequence[int]]:
    """List draws that follow each other as the layers of one step do, so that its first and last
    layer, which overlap with less, count about as often as in a step.

    More draws than layers are dealt out to several passes; fewer come several times in one. The
    length of a pass is as near to the model's as whole numbers allow, within a third.
    """
    if num_draws > num_layers:
        num_passes = round(num_draws / num_layers)
        return [range(first, num_draws, num_passes) for first in range(num_passes)]
    return [list(range(num_draws)) * round(num_layers / num_draws)]


def _expert_program(prices: Prices, steps: list[ExpertStep], beside_s: float) -> list[Operation]:
    """Program of one MoE layer after another, each behind ``beside_s`` seconds of other work, or
    with it beside its dispatch, which counts as ``attention``.
    """
    num_ranks = prices.placement.layout.num_ranks
    program: list[Operation] = []
    for layer, step in enumerate(steps):
        beside = Busy("attention", layer, np.full(num_ranks, beside_s))
        if prices.hides_shared:
            program += expert_operations(prices, step, layer, beside)
        else:
            program += [beside, *expert_operations(prices, step, layer)]
        # Ranks then meet in the all-reduce that follows, which is priced elsewhere.
        if not prices.placement.layout.travels:
            program.append(Together("wait", layer, (tuple(range(num_ranks)),), (Exchange.empty(),)))
    return program


# Counts of token-expert pairs that an overflow policy drops or reroutes, layer by layer.


class OverflowCount:
    """Pairs of batches of one model that were counted."""

    def __init__(self, num_layers: int) -> None:
        """Start at nothing.

        Args:
            num_layers: MoE layers of the model.
        """
        self.num_batches = 0
        self._pairs_3L = np.zeros((3, num_layers), dtype=np.int64)
        """Pairs that were chosen, dropped and rerouted, by layer."""

    def add(self, prices: Prices, priced: PricedBatch) -> None:
        """Add a batch, where anything can be dropped."""
        moe = prices.placement.model.moe
        if moe is None or not prices.placement.drops_pairs:
            return
        self.num_batches += 1
        for part, steps in priced.parts:
            changed = [(step.dropped_pairs, step.rerouted_pairs) for step in steps]
            self._pairs_3L[0] += int(part.tokens_d.sum()) * moe.top_k
            self._pairs_3L[1:] += np.array(changed, dtype=np.int64).T

    def join(self, other: OverflowCount) -> None:
        """Add the batches of another pool."""
        self.num_batches += other.num_batches
        self._pairs_3L += other._pairs_3L

    def report(self, dropped_share: float) -> OverflowByLayer | None:
        """Report the shares of pairs by layer; ``None`` without any.

        Args:
            dropped_share: share of all pairs of the run that were dropped, which the shares by
                layer are scaled to: batches that were counted may be few.
        """
        chosen_L, dropped_L, rerouted_L = self._pairs_3L
        if not chosen_L.any():
            return None
        counted = dropped_L.sum() / chosen_L.sum()
        scale = dropped_share / counted if counted else 1.0
        shares = [
            np.minimum(scale * pairs_L / chosen_L, 1.0).tolist()
            for pairs_L in (dropped_L, rerouted_L)
        ]
        return OverflowByLayer(self.num_batches, *shares)
