"""The ``step`` fidelity's prices, in arrays for compiled code; the routed experts' part is filled by the ``rank`` fidelity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.cost.comm import Exchange
from simulator.engine.fabric import FluidWires
from simulator.engine.rank import finish_step, run_step
from simulator.errors import UserError
from simulator.plan import POOL_TOKENS
from simulator.price import Prices
from simulator.program import Operation, Together

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPERT_PHASES = ("experts", "dispatch", "combine", "wait")
_GROWTHS = ((512, 1.3), (4096, 1.6), (1 << 60, 2.5))
"""Up to so many tokens, the ratio of neighbouring entries; linear in between. Beyond some hundred tokens each expert has its
share and prices are nearly straight lines; the pool's 4,096 tokens stand for more of them in proportion."""
_SHARES = (1.0, 1.25, 1.6, 3.0, 8.0)
"""Tokens of the fullest data-parallel rank over the mean rank's."""
_DRAWS = 64
"""Layers whose choices an entry is the mean of: models with fewer draw several times. With 4 layers, one draw of a few tokens
missed the mean load imbalance by up to 16 %."""


class StepTable(NamedTuple):
    """Everything that the price of a step needs. Arrays over tokens are indexed by their number."""

    mixer_s: Floats
    """``[T]`` all layers' mixers without looking back, by tokens of a data-parallel rank."""
    ffn_s: Floats
    """``[T]`` all layers' feed-forward blocks without routed experts."""
    head_s: Floats
    """``[n]`` output matrix by sequences that get a token."""
    collective_s: Floats
    """``[T]`` all all-reduces of a step."""
    windows: Ints
    """``[W]`` distinct ways to look back: window in entries ..."""
    compressions: Ints
    """``[W]`` ... and tokens of an entry."""
    term_window: Ints
    """``[J]`` for each context kernel: which of the ways it looks back."""
    term_layers: Floats
    term_costs: Floats
    """``[J, 4]`` prefill FLOPs a pair, decode FLOPs a pair, prefill bytes an entry, decode bytes an entry."""
    rates: Floats
    """``[2, 3]`` prefill and decode: FLOP/s, bytes/s, floor in seconds."""
    expert_tokens: Floats
    """``[G]`` tokens of the whole replica; empty for a dense model."""
    expert_shares: Floats
    """``[S]`` tokens of the fullest data-parallel rank over the mean."""
    expert_s: Floats
    """``[G, S, 6]`` seconds of ``EXPERT_PHASES``, all layers; the mean load imbalance; bytes of experts the mean rank reads."""
    weight_bytes: float
    """Weights other than routed experts that a rank reads in every step."""
    step_s: float
    sequence_s: float
    prompt_s: float
    """Of the engine's own time, what a step with prompt tokens takes beyond one without."""


def make_table(prices: Prices, rng: np.random.Generator) -> StepTable:
    """Price everything once. The routed experts take the time: one run of all MoE layers for each entry."""
    layout = prices.plan.layout
    if prices.plan.calibration.shared_cores is not None:
        raise UserError(
            f"{prices.plan.name}: its {layout.num_ranks} ranks share {prices.plan.calibration.shared_cores} cores, which takes "
            "--fidelity rank"
        )
    terms = prices.lookbacks
    ways = list(dict.fromkeys((t.window, t.compression) for t in terms))
    zeros = np.zeros(prices.max_tokens + 1)
    rates = [prices.rates["prefill"], prices.rates["decode"]]
    tokens, shares, expert_s = _fill_experts(prices, rng)
    engine = prices.plan.calibration.engine
    return StepTable(
        mixer_s=sum((prices.mixer_s[name] * count for name, count in prices.mixer_layers.items()), zeros),
        ffn_s=sum((prices.ffn_s[name] * count for name, count in prices.ffn_layers.items()), zeros),
        head_s=prices.head_s,
        collective_s=_collectives_s(prices) if layout.tp > 1 else zeros,
        windows=np.array([window for window, _ in ways], dtype=np.int64),
        compressions=np.array([compression for _, compression in ways], dtype=np.int64),
        term_window=np.array([ways.index((t.window, t.compression)) for t in terms], dtype=np.int64),
        term_layers=np.array([t.num_layers for t in terms], dtype=np.float64),
        term_costs=np.array(
            [(t.prefill_flops, t.decode_flops, t.prefill_bytes, t.decode_bytes) for t in terms], dtype=np.float64
        ).reshape(len(terms), 4),
        rates=np.array([(rate.flops_per_s, rate.bytes_per_s, rate.floor_s) for rate in rates]),
        expert_tokens=tokens,
        expert_shares=shares,
        expert_s=expert_s,
        weight_bytes=prices.read_bytes_per_step,
        step_s=engine.step_s,
        sequence_s=engine.sequence_s,
        prompt_s=engine.prompt_layer_s * prices.plan.model.num_layers,
    )


def _collectives_s(prices: Prices) -> Floats:
    """Each number of tokens is priced: which protocol is fastest changes with the size."""
    return prices.all_reduces_s(np.arange(prices.max_tokens + 1)) * prices.num_all_reduces


def _fill_experts(prices: Prices, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    layout = prices.plan.layout
    if prices.plan.experts is None:
        return np.zeros(0), np.ones(1), np.zeros((0, 1, len(EXPERT_PHASES) + 2))
    totals = _grid(prices.max_tokens * layout.attention_dp)
    # Only tokens that travel care on which rank they are.
    shares = [s for s in _SHARES if s < layout.attention_dp] + [float(layout.attention_dp)] if layout.travels else [1.0]
    table = np.zeros((len(totals), len(shares), len(EXPERT_PHASES) + 2))
    for g, total in enumerate(totals):
        known: dict[int, Floats] = {}
        for s, share in enumerate(shares):
            tokens_d = spread(total, share, layout.attention_dp)
            fullest = int(tokens_d.max())
            if fullest not in known:
                draws = max(1, min(round(_DRAWS / prices.plan.model.num_moe_layers), POOL_TOKENS // total))
                offsets = rng.integers(1 << 30, size=draws)
                known[fullest] = np.mean([price_experts(prices, tokens_d, int(offset)) for offset in offsets], axis=0)
            table[g, s] = known[fullest]
    return np.array(totals, dtype=np.float64), np.array(shares), table


def _grid(largest: int) -> list[int]:
    grid = [1, 2]
    while grid[-1] < largest:
        growth = next(ratio for limit, ratio in _GROWTHS if grid[-1] < limit)
        grid.append(min(largest, max(grid[-1] + 1, round(grid[-1] * growth))))
    return grid


def spread(total: int, share: float, num_ranks: int) -> Ints:
    """``total`` tokens over ranks, the first holding ``share`` times the mean (or as near as whole tokens allow), the rest even."""
    fullest = min(total, max(-(-total // num_ranks), round(share * total / num_ranks)))
    tokens_d = np.zeros(num_ranks, dtype=np.int64)
    tokens_d[0] = fullest
    if num_ranks > 1:
        rest, others = total - fullest, num_ranks - 1
        tokens_d[1:] = rest // others + (np.arange(others) < rest % others)
    return tokens_d


def price_experts(prices: Prices, tokens_d: Ints, offset: int) -> Floats:
    """Run all MoE layers for ``tokens_d`` tokens at the ``rank`` fidelity: seconds of ``EXPERT_PHASES``, imbalance, bytes read."""
    num_layers = prices.plan.model.num_moe_layers
    program: list[Operation] = []
    everyone = (tuple(range(prices.plan.layout.num_ranks)),)
    imbalance = read_bytes = 0.0
    for layer in range(num_layers):
        step = prices.expert_step(layer, tokens_d, offset)
        program += prices.expert_operations(step, layer)
        if not prices.plan.layout.travels:  # ranks meet in the all-reduce that follows, priced elsewhere
            program.append(Together("wait", layer, everyone, (Exchange.nothing(),)))
        imbalance += float(step.pairs_R.max() / step.pairs_R.mean()) / num_layers
        read_bytes += step.read_bytes
    env = simpy.Environment()
    times = finish_step(env, run_step(env, FluidWires(env), program, prices.plan.layout.num_ranks))
    return np.array([*(times.phases[phase] for phase in EXPERT_PHASES), imbalance, read_bytes])
