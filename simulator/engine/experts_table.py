"""Routed experts' part of the ``step`` fidelity's table: each entry is filled by some runs of MoE
layers at the ``rank`` fidelity.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from simulator.cost.comm import Exchange
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.engine.lockstep import Lockstep
from simulator.engine.state import Floats, Ints
from simulator.policies.dispatch import limits_of
from simulator.step.expert_prices import ExpertStep, find_imbalance
from simulator.step.operations import expert_operations
from simulator.step.prices import Prices
from simulator.step.program import Busy, Operation, Together
from simulator.step.two_batch import first_half, interleave

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


def list_entries(prices: Prices) -> tuple[Floats, Floats, int]:
    """List a table's ``expert_tokens`` and ``expert_shares``, and count its :data:`BESIDES`."""
    layout = prices.placement.layout
    if prices.placement.experts is None:
        return np.zeros(0), np.ones(1), 1
    # Only tokens that travel care on which rank they are.
    shares = (
        [s for s in _SHARES if s < layout.attention_dp] + [float(layout.attention_dp)]
        if layout.travels
        else [1.0]
    )
    totals = sorted({*_grid(prices.max_tokens * layout.attention_dp), *_edges(prices)})
    return np.array(totals, dtype=np.float64), np.array(shares), len(list_besides(prices))


def price_entry(prices: Prices, tokens_d: Ints, stream: str) -> tuple[float, Floats]:
    """Price the experts for so many tokens on each data-parallel rank, from draws of the entry's
    own (:func:`price_experts`).

    Args:
        stream: name of the random stream, of which every entry has its own.
    """
    total, fullest = int(tokens_d.sum()), int(tokens_d.max())
    rng = prices.placement.rng(stream, total, fullest)
    places = _draw_places(prices.experts.imbalance_L, total, rng)
    return price_experts(prices, tokens_d, places, list_besides(prices))


def list_besides(prices: Prices) -> tuple[float, ...]:
    """List the ratios that each entry has: of what is computed beside exchanges to their time."""
    return BESIDES if prices.halved_layers or prices.hides_shared else (0.0,)


def _edges(prices: Prices) -> list[int]:
    """Total numbers of tokens on both sides of each change of the dispatch policy's method."""
    placement = prices.placement
    layout = placement.layout
    if placement.experts is None or not layout.travels:
        return []
    ends = [limit * layout.num_ranks for limit in limits_of(placement.experts.dispatch)]
    if prices.halved_layers:  # the halves pass the limit one after the other
        ends = [at for end in ends for at in (2 * end, 2 * end + layout.num_ranks)]
    return [
        total
        for end in ends
        for total in (end, end + 1)
        if total <= prices.max_tokens * layout.attention_dp
    ]


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


def _draw_places(
    imbalance_L: Floats, total: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw layers, and indices in their pools of recorded choices at which an entry's tokens begin:
    more where a step has few tokens, whose draws differ most.
    """
    count = min(max(_DRAWN_TOKENS // total, _FEWEST_DRAWS), _MOST_DRAWS)
    offsets = rng.integers(POOL_TOKENS, size=count)
    layers = _choose_layers(tuple(imbalance_L.tolist()), count)
    return list(zip(layers, offsets.tolist(), strict=True))


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
    prices: Prices,
    tokens_d: Ints,
    places: Sequence[tuple[int, int]],
    besides: tuple[float, ...] = (0.0,),
) -> tuple[float, Floats]:
    """Run MoE layers that represent all of the model for ``tokens_d`` tokens at the ``rank``
    fidelity, one after another.

    Args:
        places: MoE layer, and index of the first token in its pool of recorded choices.
        besides: ratios of what is computed beside exchanges in all layers to their time alone
            (:data:`BESIDES`).

    Returns:
        Seconds of a half's exchanges alone, and for each of ``besides`` the seconds of
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
        besides = besides if prices.hides_shared else (0.0,)
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
        lockstep = Lockstep(
            interleave(*programs) if len(programs) > 1 else programs[0],
            prices.placement.layout.num_ranks,
        )
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
        if (
            not prices.placement.layout.travels
        ):  # ranks meet in the all-reduce that follows, priced elsewhere
            program.append(Together("wait", layer, (tuple(range(num_ranks)),), (Exchange.empty(),)))
    return program
