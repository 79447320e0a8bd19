"""Prices of the ``step`` fidelity, in arrays for compiled code.

The routed experts' part is filled beside it, in :mod:`simulator.engine.experts_table`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.cost.compute import Rates
from simulator.cost.kernels.context import NUM_SUMS
from simulator.deployment.placement import Placement
from simulator.engine.block_prices import price_blocks, sum_layers
from simulator.engine.experts_table import (
    NUM_COLUMNS,
    list_besides,
    list_entries,
    price_entry,
    spread_tokens,
)
from simulator.engine.state import Floats, Ints
from simulator.engine.step_log import LOG_COLUMNS
from simulator.step.mixes import Mixes, single_mix
from simulator.step.pipelines import sends_s, stage_shares
from simulator.step.prices import PHASES, Prices
from simulator.work.context import NO_WINDOW


class StepTable(NamedTuple):
    """Price table of a pool's steps. Arrays over tokens are indexed by their number."""

    mixer_s: Floats
    """``[A, T]`` seconds of all layers' mixers without attention over the context, on each kind of
    GPU in the cluster, by tokens of a data-parallel rank."""
    ffn_s: Floats
    """``[A, T]`` seconds of all layers' feed-forward blocks without routed experts."""
    head_s: Floats
    """``[A, n]`` seconds of the output matrix by sequences that get a token."""
    kind: Ints
    """``[Z, D]`` kind of GPU of each data-parallel group in each state of a replica (``sizes``)."""
    slow: Floats
    """``[Z, D, 2]`` factors on the seconds in which the mean and the slowest rank of each
    data-parallel group compute."""
    group_class: Ints
    """``[Z, D]`` class of each data-parallel group: those of one are equally fast."""
    collective_s: Floats
    """``[Z, K, T]`` seconds of all all-reduces of a step, in a group of each class."""
    halved_s: Floats
    """``[A, T]`` seconds of mixers, feed-forward blocks and all-reduces of the layers that
    two-batch overlap runs in halves, or of shared experts that compute beside the dispatch; 0
    without either."""
    num_parts: int
    """Parts that a step's tokens pass those layers in: two halves, or one."""
    windows: Ints
    """``[W, 2]`` window in entries of each distinct kind of attention context, for prefill and
    decode."""
    compressions: Ints
    """``[W]`` tokens of a cached entry of each kind of context."""
    tile_rows: Floats
    """``[W, 2]`` rows that are computed together, for each kind of context."""
    term_window: Ints
    """``[A, J]`` kind of context of each context kernel."""
    term_layers: Floats
    """``[J]`` layers of each context kernel."""
    term_halved: Floats
    """``[J]`` layers of each context kernel that run in halves."""
    term_bytes: Floats
    """``[J, 2]`` bytes of an entry in prefill and decode."""
    rates: Floats
    """``[A, J, 2, :]`` fields of :class:`simulator.cost.kernels.context.Rates`."""
    sizes: Ints
    """``[Z, 4]`` entries ``G``, ``S`` and ``M``, and ranks ``R``, of each state of a replica: all
    ranks as fast as usual, some lost, or some slower. Where groups are not equally fast, each class
    of them that may have most tokens is a state. Arrays of all states are as large as the
    largest."""
    fullest: Ints
    """``[Z]`` data-parallel group that has most tokens in a state, for its class."""
    expert_tokens: Floats
    """``[Z, G]`` tokens of the whole replica; ``G`` is 0 for a dense model."""
    expert_shares: Floats
    """``[Z, S]`` ratio of the fullest data-parallel rank's tokens to the mean rank's."""
    expert_imbalances: Floats
    """``[Z, M]`` imbalances of the loads that are expected of the mixes of requests."""
    profile_loads: Floats
    """``[Z, Y, P, R]`` token-expert pairs of a token of each load profile that are expected on each
    rank, in layers that stand for all; without profiles where all mixes cost the same."""
    expert_besides: Floats
    """``[B]`` seconds that a part computes beside its exchanges, in ``expert_alone_s``; one entry
    where nothing is hidden."""
    expert_alone_s: Floats
    """``[Z, G, S, M]`` seconds of a part's exchanges by themselves in all layers."""
    expert_s: Floats
    """``[Z, G, S, M, B, 7]`` seconds of ``EXPERT_PHASES``, all layers; mean load imbalance; bytes
    of weights the mean rank reads; token-expert pairs dropped in all layers."""
    is_filled: NDArray[np.bool_]
    """``[Z, G, S, M]`` whether an entry is filled; others are filled when a step needs them."""
    wanted: Ints
    """``[4]`` entry that the latest price lacked; -1 if none."""
    weight_bytes: float
    """Bytes of weights other than routed experts that a rank reads in every step."""
    step_s: float
    """Seconds of engine overhead of every step."""
    sequence_s: float
    """Seconds of engine overhead of each sequence in a step."""
    prompt_s: float
    """Seconds of engine overhead that a step with prompt tokens takes beyond one without."""
    factor: float
    """Multiplier of all seconds."""
    decode_rows: int
    """Most new tokens of a sequence that decode attention kernels take: one, and the draft
    tokens."""
    slowdown: float
    """Ratio of a step's time with drafting to its time without
    (:attr:`simulator.policies.speculation.Drafts.slowdown`)."""
    sends_s: Floats
    """``[T]`` seconds of transfers through all stages of a pipeline, by tokens of a batch's fullest
    data-parallel rank; empty without one."""
    longest_stage: float
    """Share of the layers in the longest stage."""
    last_stage: float
    """Share of the layers in the last stage."""
    profile_tokens: Floats
    """``[P]`` tokens of each load profile in all steps that were priced."""
    room_for_profiles: Floats
    """Scratch space ``[P]`` of a step's tokens by load profile."""
    room_for_loads: Floats
    """Scratch space ``[R]`` of the ranks' expected loads."""
    room_for_sums: Floats
    """Scratch space ``[W, 2, NUM_SUMS]`` of a rank's price."""
    room_for_lanes: Floats
    """Scratch space ``[pp, columns]`` of the rows of a pipeline's lanes."""
    room_for_ends: Floats
    """Scratch space ``[2, pp]`` of the seconds of the lanes' output matrices and of their
    transfers."""


def make_table(prices: Prices, stream: str = "steps") -> StepTable:
    """Fill a whole table. Most of the time goes into the routed experts: a dozen to a hundred runs
    of a MoE layer for each entry.

    Args:
        stream: name of the random stream, of which every entry has its own, so that it can be
            filled alone and in any order.
    """
    mixes = single_mix(prices)
    table = start_table(mixes)
    for z, g, s, m in np.ndindex(*table.is_filled.shape):
        fill_entry(table, mixes, stream, z, g, s, m)
    return table


def fill_entry(table: StepTable, mixes: Mixes, stream: str, z: int, g: int, s: int, m: int) -> None:
    """Price the routed experts of one number of tokens, one share of the fullest rank and one mix,
    in the table and all others that share its arrays.

    Args:
        mixes: of state ``z``.
        stream: as in :func:`make_table`.
    """
    prices = mixes.prices_M[m]
    dp = prices.placement.layout.attention_dp
    total, shares = int(table.expert_tokens[z, g]), table.expert_shares[z]
    tokens_d = spread_tokens(total, float(shares[s]), dp)
    for other in np.flatnonzero(table.is_filled[z, g, :, m]):
        if (spread_tokens(total, float(shares[other]), dp) == tokens_d).all():
            found = table.expert_alone_s[z, g, other, m], table.expert_s[z, g, other, m]
            break
    else:
        found = price_entry(prices, np.roll(tokens_d, table.fullest[z]), stream)
    table.expert_alone_s[z, g, s, m], table.expert_s[z, g, s, m] = found
    table.is_filled[z, g, s, m] = True
    table.wanted[:] = -1


def start_table(mixes: Mixes) -> StepTable:
    """Price everything except the routed experts, whose entries are filled by
    :func:`fill_entry`.
    """
    prices = mixes.prices_M[0]
    placement = prices.placement
    layout = placement.layout
    if placement.calibration.shared_cores is not None:
        raise UserError(
            f"{placement.name}: its {layout.num_ranks} ranks "
            f"share {placement.calibration.shared_cores} cores, which takes --fidelity rank"
        )
    terms = prices.context_kernels
    kinds = prices.kinds
    ways_AJ = [[tuple(own.view(t, phase) for phase in PHASES) for t in terms] for own in kinds]
    ways = list(dict.fromkeys(way for ways_J in ways_AJ for way in ways_J))
    views = [view for way in ways for view in way]
    numbers = np.arange(prices.max_tokens + 1)
    layers = placement.model.layer_names
    in_halves = [layers[layer] for layer in prices.halved_layers]
    mixers_halved = Counter(mixer for mixer, _ in in_halves if mixer != "none")
    ffns_halved = Counter(ffn for _, ffn in in_halves if ffn != "none")
    reduces_halved = sum(sum(prices.all_reduces(ffn, mixer)) for mixer, ffn in in_halves)
    class_D, first_K = placement.speed_classes
    reduces = (
        [
            # The fastest protocol changes with the size.
            (prices.all_reduces_s(numbers, d), prices.num_all_reduces, reduces_halved)
            for d in first_K.tolist()
        ]
        if layout.tp > 1
        else []
    )
    tokens, shares, num_besides = list_entries(prices)
    entries = (len(tokens), len(shares), len(mixes.prices_M))
    blocks = [price_blocks(own, mixers_halved, ffns_halved, reduces[:1]) for own in kinds]
    stages = stage_shares(placement)
    engine = placement.calibration.engine

    def repeat(of_state: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(of_state[None], len(first_K), axis=0)

    return StepTable(
        mixer_s=np.stack([one.mixer_s for one in blocks]),
        ffn_s=np.stack([one.ffn_s for one in blocks]),
        head_s=np.stack([own.head_s for own in kinds]),
        kind=repeat(placement.kind_R[:: layout.tp]),
        slow=repeat(_list_slow(placement)),
        group_class=repeat(class_D),
        collective_s=repeat(
            np.stack(
                [sum_layers(*block) for block in reduces] or [np.zeros(len(numbers))] * len(first_K)
            )
        ),
        halved_s=np.stack([one.halved_s for one in blocks]),
        num_parts=2 if in_halves else 1,
        windows=np.array([view[0] for view in views], dtype=np.int64).reshape(-1, 2),
        compressions=np.array([view[1] for view in views[::2]], dtype=np.int64),
        tile_rows=np.array([view[2] for view in views], dtype=np.float64).reshape(-1, 2),
        term_window=np.array(
            [[ways.index(way) for way in ways_J] for ways_J in ways_AJ], dtype=np.int64
        ),
        term_layers=np.array([t.num_layers for t in terms], dtype=np.float64),
        term_halved=np.array([mixers_halved[t.mixer] for t in terms], dtype=np.float64),
        term_bytes=np.array(
            [(t.prefill_bytes, t.decode_bytes) for t in terms], dtype=np.float64
        ).reshape(-1, 2),
        rates=np.array(
            [[[own.rates[t, phase] for phase in PHASES] for t in terms] for own in kinds],
            dtype=np.float64,
        ).reshape(len(kinds), -1, 2, len(Rates._fields)),
        sizes=repeat(np.array([*entries, mixes.load_YPR.shape[2]])),
        fullest=first_K,
        expert_tokens=repeat(tokens),
        expert_shares=repeat(shares),
        expert_imbalances=repeat(mixes.imbalance_M),
        profile_loads=repeat(mixes.load_YPR),
        expert_besides=np.array(list_besides(prices)),
        expert_alone_s=np.ones((len(first_K), *entries)),
        expert_s=np.zeros((len(first_K), *entries, num_besides, NUM_COLUMNS)),
        is_filled=np.zeros((len(first_K), *entries), dtype=np.bool_),
        wanted=np.full(4, -1, dtype=np.int64),
        weight_bytes=prices.read_bytes_per_step,
        step_s=engine.step_s,
        sequence_s=engine.sequence_s,
        prompt_s=placement.prompt_s,
        factor=1.0,
        decode_rows=prices.decode_rows,
        slowdown=placement.drafts.slowdown,
        sends_s=sends_s(prices, numbers) if layout.pp > 1 else np.zeros(0),
        longest_stage=stages[0],
        last_stage=stages[1],
        profile_tokens=np.zeros(mixes.load_YPR.shape[1]),
        room_for_profiles=np.zeros(mixes.load_YPR.shape[1]),
        room_for_loads=np.zeros(mixes.load_YPR.shape[2]),
        room_for_sums=np.zeros((len(ways), 2, NUM_SUMS)),
        room_for_lanes=np.zeros((layout.pp, len(LOG_COLUMNS))),
        room_for_ends=np.zeros((2, layout.pp)),
    )


def change_engine(table: StepTable, placement: Placement) -> StepTable:
    """Replace the engine overhead in a table by that of a placement that is otherwise the same."""
    engine = placement.calibration.engine
    return table._replace(
        step_s=engine.step_s, sequence_s=engine.sequence_s, prompt_s=placement.prompt_s
    )


def _list_slow(placement: Placement) -> Floats:
    """Factors on the seconds of the mean and the slowest rank of each group, ``[D, 2]``."""
    layout = placement.layout
    slow_R = placement.slow_down(np.ones(layout.num_ranks)).reshape(layout.attention_dp, layout.tp)
    return np.stack([slow_R.mean(axis=1), slow_R.max(axis=1)], axis=1)


def sums_contexts(table: StepTable) -> bool:
    """Whether the price of decodes depends only on their number, the sum of their contexts and the
    longest: no layer has a window or compresses, and whole rows are computed together.
    """
    rows = table.tile_rows[:, 1]
    return bool(
        len(table.mixer_s)
        and (table.windows[:, 1] >= NO_WINDOW).all()
        and (table.compressions == 1).all()
        and (rows == np.rint(rows)).all()
    )


def slow_table(table: StepTable, factor: float) -> StepTable:
    """Multiply every second of a table by ``factor``; filled entries stay shared with
    the original.
    """
    return table._replace(factor=table.factor * factor)


def empty_table() -> StepTable:
    """Make a table without entries, for fidelities that simulate the ranks of each step."""
    nothing = np.zeros(0)
    no_pairs = np.zeros((0, 0))
    return StepTable(
        mixer_s=no_pairs,
        ffn_s=no_pairs,
        head_s=no_pairs,
        kind=no_pairs.astype(np.int64),
        slow=np.zeros((0, 0, 2)),
        group_class=no_pairs.astype(np.int64),
        collective_s=np.zeros((0, 0, 0)),
        halved_s=no_pairs,
        num_parts=1,
        windows=np.zeros((0, 2), dtype=np.int64),
        compressions=nothing.astype(np.int64),
        tile_rows=np.zeros((0, 2)),
        term_window=no_pairs.astype(np.int64),
        term_layers=nothing,
        term_halved=nothing,
        term_bytes=np.zeros((0, 2)),
        rates=np.zeros((0, 0, 0, 0)),
        sizes=np.zeros((0, 4), dtype=np.int64),
        fullest=np.zeros(0, dtype=np.int64),
        expert_tokens=no_pairs,
        expert_shares=no_pairs,
        expert_imbalances=no_pairs,
        profile_loads=np.zeros((0, 0, 0, 0)),
        expert_besides=nothing,
        expert_alone_s=np.zeros((0, 0, 0, 0)),
        expert_s=np.zeros((0, 0, 0, 0, 0, 0)),
        is_filled=np.zeros((0, 0, 0, 0), dtype=np.bool_),
        wanted=np.full(4, -1, dtype=np.int64),
        weight_bytes=0.0,
        step_s=0.0,
        sequence_s=0.0,
        prompt_s=0.0,
        factor=1.0,
        decode_rows=1,
        slowdown=1.0,
        sends_s=nothing,
        longest_stage=0.0,
        last_stage=0.0,
        profile_tokens=nothing,
        room_for_profiles=nothing,
        room_for_loads=nothing,
        room_for_sums=np.zeros((0, 0, 0)),
        room_for_lanes=no_pairs,
        room_for_ends=no_pairs,
    )
