"""Prices of the ``step`` fidelity, in arrays for compiled code.

The routed experts' part is filled beside it, in :mod:`simulator.engine.experts_table`.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.jit import jit_inner
from simulator.cost.compute import Rates
from simulator.cost.engine_time import sequences_s
from simulator.cost.kernels.attention import NUM_SUMS, split_s, work_s
from simulator.deployment.placement import Placement
from simulator.engine.batching import computes, is_decode
from simulator.engine.experts_table import NUM_COLUMNS, list_entries, price_entry, spread_tokens
from simulator.engine.state import Floats, Ints, Ranks, Requests
from simulator.engine.step_log import LOG_COLUMNS
from simulator.step.blocks import price_blocks, price_module, sum_layers
from simulator.step.mixes import Mixes, single_mix
from simulator.step.prices import PHASES, Prices, sends_s, stage_shares
from simulator.work.context import NO_WINDOW, add_decodes, add_sums

# Seconds of a formed step, read from the table: of one data-parallel group, of the lanes of a
# pipeline, and of routed experts between the table's entries. Compiled.


ATTENTION = 8
"""First column of a log row that holds a part of a step's time."""


@jit_inner
def price_step(
    requests: Requests, ranks: Ranks, table: StepTable, z: int, row: NDArray[np.float64]
) -> float:
    """Seconds of the formed step of a replica in state ``z``, NaN where it needs a table entry that
    is not filled; its parts go into the log row from :data:`ATTENTION` on.

    Data-parallel ranks wait for the slowest: the mean rank's time counts as work, the rest as
    waiting. The same holds for the lanes of a pipeline.
    """
    num_dp = len(ranks.caches)
    num_lanes = len(ranks.each) // num_dp
    factor = table.factor
    if num_lanes == 1:
        _price_lane(requests, ranks, table, z, 0, False, 0, num_dp, row)
        _add_passes(requests, ranks, table, z, row)
        if table.wanted[0] >= 0:
            return math.nan
        if factor != 1.0:
            slow_down(row, factor)
        return float(row[ATTENTION : ATTENTION + 8].sum())
    lanes, head_s, sends_s = table.room_for_lanes, table.room_for_ends[0], table.room_for_ends[1]
    lanes[:] = 0.0
    for lane in range(num_lanes):
        if computes(ranks, lane * num_dp, (lane + 1) * num_dp):
            head, fullest = _price_lane(
                requests, ranks, table, z, 0, False, lane * num_dp, (lane + 1) * num_dp, lanes[lane]
            )
            head_s[lane], sends_s[lane] = head, table.sends_s[fullest]
            lanes[lane, ATTENTION + 6] += sends_s[lane]
    if table.wanted[0] >= 0:
        return math.nan
    parts, ends = lanes[:, ATTENTION:], (table.longest_stage, table.last_stage)
    duration_s = float(price_pipeline(parts, head_s, sends_s, num_lanes, ends[0], ends[1], row))
    if factor != 1.0:
        slow_down(row, factor)
    return duration_s * factor


@jit_inner
def _add_passes(
    requests: Requests, ranks: Ranks, table: StepTable, z: int, row: NDArray[np.float64]
) -> None:
    """Add the passes of the drafting module to the log row of a step: the first is over all its
    tokens, each further one over one token of each sequence.
    """
    own = table.room_for_lanes[0]
    for k in range(min(2, table.num_passes)):
        if table.wanted[0] >= 0:
            return
        _price_lane(requests, ranks, table, z, 1, k > 0, 0, len(ranks.caches), own)
        add_pass(row, own[ATTENTION:], 1 if k == 0 else table.num_passes - 1)


@jit_inner
def add_pass(row: NDArray[np.float64], parts: NDArray[np.float64], count: int) -> None:
    """Add ``count`` equal passes of a drafting module to the log row of a step, whose imbalance
    stays that of the model.

    Args:
        parts: log row of one pass from :data:`ATTENTION` on.
    """
    for c in range(11):
        if c != 8:
            row[ATTENTION + c] += count * parts[c]


@jit_inner
def count_profiles(table: StepTable) -> None:
    """Count the tokens of the step that was priced last by their load profiles."""
    total, tokens_P = table.profile_tokens, table.room_for_profiles
    for p in range(len(total)):
        total[p] += tokens_P[p]


@jit_inner
def slow_down(row: NDArray[np.float64], factor: float) -> None:
    """Multiply the parts of a step's time by ``factor``."""
    for c in range(8):
        row[ATTENTION + c] *= factor


@jit_inner
def price_pipeline(
    parts: NDArray[np.float64],
    head_s: NDArray[np.float64],
    sends_s: NDArray[np.float64],
    num_stages: int,
    longest: float,
    last: float,
    row: NDArray[np.float64],
) -> float:
    """Seconds in which every batch of a pipeline passes every stage once; their parts go into the
    log row from :data:`ATTENTION` on.

    A batch begins anew when it has left the last stage, so the time is that of the batch that takes
    longest; and no stage, nor the engine itself, can be busy with all batches for longer than that.
    This is the steady state of stages that take batches in order.

    Args:
        parts: ``[batches, columns]`` log row of each from :data:`ATTENTION` on, with its transfers
            from stage to stage among the collectives.
        head_s: ``[batches]`` seconds of ``parts`` in the last stage besides its layers.
        sends_s: ``[batches]`` seconds of ``parts`` in transfer from stage to stage.
        longest: share of the layers in the longest stage.
        last: share of the layers in the last stage.
    """
    alone = layers = ends = engine = 0.0
    num_busy = 0
    for b in range(len(parts)):
        own = parts[b, :8].sum()
        if own == 0.0:
            continue
        num_busy += 1
        alone = max(alone, own)
        in_layers = own - parts[b, 7] - sends_s[b] - head_s[b]
        layers += in_layers * longest
        ends += in_layers * last + head_s[b]
        engine += parts[b, 7]
    duration = max(max(alone, layers), max(ends, engine))
    for c in range(10):
        row[ATTENTION + c] = parts[:, c].sum() / num_stages
    row[ATTENTION + 8] *= num_stages / num_busy
    row[ATTENTION + 10] = parts[:, 10].sum()
    row[ATTENTION + 5] += duration - row[ATTENTION : ATTENTION + 8].sum()
    return float(duration)


@jit_inner
def _price_lane(
    requests: Requests,
    ranks: Ranks,
    table: StepTable,
    z: int,
    part: int,
    is_further: bool,
    first: int,
    end: int,
    row: NDArray[np.float64],
) -> tuple[float, int]:
    """Price the batches of ranks ``first`` to ``end``, which step together through every layer;
    those that are lost do not.

    Args:
        part: 0 for the model, 1 for the module that drafts for it.
        is_further: whether one token of each sequence is computed, behind those of the step.

    Returns:
        Seconds of the output matrix, and tokens of the fullest rank.
    """
    running, chunk, each, rows = ranks.running, ranks.chunk, ranks.each, requests.each
    windows, compressions, tile_rows = table.windows, table.compressions, table.tile_rows
    term_layers, term_halved = table.term_layers[part], table.term_halved
    kind = table.kind[z]
    slow, group_class, collective_s = table.slow[z], table.group_class[z], table.collective_s[z]
    decode_rows = table.decode_rows
    num_ranks, num_ways, num_terms = end - first, len(windows), len(term_layers)
    for d in range(first, end):
        num_ranks -= each[d].is_lost
    sums, tokens_P = table.room_for_sums, table.room_for_profiles
    if part == 0:
        tokens_P[:] = 0.0
    attention = dense = collective = slowest = beside = heading = 0.0
    read_bytes = table.weight_bytes[part]
    total_tokens = fullest = fullest_class = most_sequences = prompts = 0
    for d in range(first, end):
        rank = each[d]
        if rank.is_lost:
            continue
        sums[:] = 0.0
        tokens = sequences = logits = decodes = rank.num_decodes
        if part == 0:
            for p in range(len(tokens_P)):
                tokens_P[p] += ranks.profiles[d, p]
        if decodes > 0:
            for w in range(num_ways):
                add_decodes(sums[w, 1], decodes, rank.contexts, rank.longest, tile_rows[w, 1])
        for i in range(decodes, rank.num_running):
            new = chunk[d, i]
            if new == 0:
                continue
            request = rows[running[d, i]]
            context = request.computed
            if is_further:
                context += new
                new = 1
            tokens += new
            sequences += 1
            if part == 0 and len(tokens_P):
                tokens_P[request.profile] += new
            decoding = 1 if is_decode(request.num_input, request.generated, context) else 0
            # Every token of a draft is compared with the model's own.
            if part > 0:
                logits += 1
            elif decoding:
                logits += new
            else:
                logits += context + new == request.num_input + request.generated
            prompts += 1 - decoding
            decodes += decoding
            for w in range(num_ways):
                phase = 1 if new <= decode_rows else 0
                own = sums[w, phase]
                add_sums(own, context, new, windows[w, phase], compressions[w], tile_rows[w, phase])
        a = kind[d - first]
        rates = table.rates[a]
        mixing, halving = table.mixer_s[part, a, tokens], table.halved_s[a, tokens]
        for j in range(num_terms):
            way = table.term_window[a, j]
            for phase in range(2):
                own, rate = sums[way, phase], rates[j, phase]
                if own[4] == 0.0:
                    continue
                floor_s, attention_s = rate[0], work_s(rate, own)
                read_bytes += term_layers[j] * own[1] * table.term_bytes[j, phase] / num_ranks
                mixing += term_layers[j] * (floor_s + attention_s)
                if term_halved[j] > 0.0:
                    # Decodes are in the first half, and in both where they are more than that.
                    half = tokens - tokens // 2 if phase == 1 else tokens // 2
                    more = (decodes if phase == 1 else tokens - decodes) > half
                    once_s = floor_s + split_s(rate, own)
                    mixing += term_halved[j] * once_s * more
                    halving += term_halved[j] * (floor_s + attention_s + once_s * more)
        heading_s = table.head_s[part, a, logits]
        feeding = table.ffn_s[part, a, tokens] + heading_s
        reducing = collective_s[group_class[d - first], tokens] * table.reduce_share[part]
        heading = max(heading, heading_s)
        mean_slow, most_slow = slow[d - first, 0], slow[d - first, 1]
        attention += mixing * mean_slow / num_ranks
        dense += feeding * mean_slow / num_ranks
        collective += reducing / num_ranks
        slowest = max(slowest, (mixing + feeding) * most_slow + reducing)
        beside = max(beside, halving * most_slow)
        total_tokens += tokens
        if tokens > fullest:
            fullest, fullest_class = tokens, group_class[d - first]
        most_sequences = max(most_sequences, sequences)
    row[ATTENTION:] = 0.0
    row[ATTENTION + 9] = read_bytes
    row[ATTENTION] = attention
    row[ATTENTION + 1] = dense
    row[ATTENTION + 5] = slowest - attention - dense - collective
    if table.sizes[z, 0]:
        share = fullest * num_ranks / total_tokens
        imbalance = _expect_imbalance(table, z) if len(tokens_P) else 1.0
        state = z + fullest_class
        beside_s, layers = beside / table.num_parts, table.expert_share[part]
        _interpolate_experts(table, state, total_tokens, share, imbalance, beside_s, layers, row)
    row[ATTENTION + 6] = collective
    if part > 0:
        row[ATTENTION + 7] = table.launch_s
        return heading, fullest
    row[ATTENTION + 7] = table.step_s + (table.prompt_s if prompts else 0.0)
    row[ATTENTION + 7] += sequences_s(most_sequences, table.sequence_s)
    return heading, fullest


@jit_inner
def _expect_imbalance(table: StepTable, z: int) -> float:
    """Imbalance of the load that is expected of the step's tokens of each profile, as a mean over
    layers (:func:`simulator.step.mixes.measure_imbalance`).
    """
    loads, tokens_P, load_R = table.profile_loads[z], table.room_for_profiles, table.room_for_loads
    total, num_ranks = 0.0, table.sizes[z, 3]
    for y in range(len(loads)):
        load_R[:] = 0.0
        for p in range(len(tokens_P)):
            if tokens_P[p] > 0.0:
                for rank in range(num_ranks):
                    load_R[rank] += tokens_P[p] * loads[y, p, rank]
        fullest = load = 0.0
        for rank in range(num_ranks):
            fullest = max(fullest, load_R[rank])
            load += load_R[rank]
        total += fullest * num_ranks / load
    return total / len(loads)


@jit_inner
def _find_interval(grid: NDArray[np.float64], size: int, value: float) -> tuple[int, float]:
    """Find the interval that ``value`` lies in, or the nearest one, in the first ``size`` values of
    a grid: its index, and where in it the value lies, 0 at its begin and 1 at its end.
    """
    if size < 2:
        return 0, 0.0
    low, high = 0, size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if grid[middle] <= value:
            low = middle
        else:
            high = middle
    return low, (value - grid[low]) / (grid[low + 1] - grid[low])


@jit_inner
def _interpolate_experts(
    table: StepTable,
    z: int,
    tokens: int,
    share: float,
    imbalance: float,
    beside_s: float,
    layers: float,
    row: NDArray[np.float64],
) -> None:
    """Add the routed experts' part: linear in tokens, in the fullest rank's share and in the
    imbalance of the expected load between table entries, and in the latter beyond them.

    Args:
        beside_s: what a part computes beside its exchanges in all layers.
        layers: those that are priced over those of the model.
    """
    sizes, besides = table.sizes, table.expert_besides
    g, a = _find_interval(table.expert_tokens[z], sizes[z, 0], float(tokens))
    s, b = _find_interval(table.expert_shares[z], sizes[z, 1], share)
    m, e = _find_interval(table.expert_imbalances[z], sizes[z, 2], imbalance)
    a, b = min(max(a, 0.0), 1.0), min(max(b, 0.0), 1.0)
    s2 = min(s + 1, sizes[z, 1] - 1)
    for corner in range(8):
        at_g, weight_g = (g, 1 - a) if corner & 2 == 0 else (g + 1, a)
        at_s, weight_s = (s, 1 - b) if corner & 1 == 0 else (s2, b)
        at_m, weight_m = (m, 1 - e) if corner & 4 == 0 else (m + 1, e)
        if weight_g * weight_s * weight_m == 0.0:
            continue
        if not table.is_filled[z, at_g, at_s, at_m]:
            wanted = table.wanted
            wanted[0], wanted[1], wanted[2], wanted[3] = z, at_g, at_s, at_m
            return
        beside = beside_s / table.expert_alone_s[z, at_g, at_s, at_m]
        x, y = _find_interval(besides, len(besides), beside)
        y = min(max(y, 0.0), 1.0)
        found_BC = table.expert_s[z, at_g, at_s, at_m]
        for c in range(7):
            value = found_BC[x, c] * (1 - y) + found_BC[min(x + 1, len(besides) - 1), c] * y
            if c != 4:  # a mean over layers
                value *= layers
            row[ATTENTION + 2 + c + (2 if c >= 4 else 0)] += value * weight_g * weight_s * weight_m


class StepTable(NamedTuple):
    """Price table of a pool's steps. Arrays over tokens are indexed by their number; ``M`` parts
    are the model, and behind it the module that drafts for it, where one does. By default it has no
    entries, for fidelities that simulate the ranks of each step.
    """

    sizes: Ints = np.zeros((0, 4), dtype=np.int64)
    """``[Z, 4]`` entries ``G``, ``S`` and ``M``, and ranks ``R``, of each state of a replica: all
    ranks as fast as usual, some lost, or some slower. Where groups are not equally fast, each class
    of them that may have most tokens is a state. Arrays of all states are as large as the
    largest."""
    fullest: Ints = np.zeros(0, dtype=np.int64)
    """``[Z]`` data-parallel group that has most tokens in a state, for its class."""
    kind: Ints = np.zeros((0, 0), dtype=np.int64)
    """``[Z, D]`` kind of GPU of each data-parallel group in each state of a replica (``sizes``)."""
    slow: Floats = np.zeros((0, 0, 2))
    """``[Z, D, 2]`` factors on the seconds in which the mean and the slowest rank of each
    data-parallel group compute."""
    group_class: Ints = np.zeros((0, 0), dtype=np.int64)
    """``[Z, D]`` class of each data-parallel group: those of one are equally fast."""
    collective_s: Floats = np.zeros((0, 0, 0))
    """``[Z, K, T]`` seconds of all all-reduces of a step, in a group of each class."""
    expert_tokens: Floats = np.zeros((0, 0))
    """``[Z, G]`` tokens of the whole replica; ``G`` is 0 for a dense model."""
    expert_shares: Floats = np.zeros((0, 0))
    """``[Z, S]`` ratio of the fullest data-parallel rank's tokens to the mean rank's."""
    expert_imbalances: Floats = np.zeros((0, 0))
    """``[Z, M]`` imbalances of the loads that are expected of the mixes of requests."""
    profile_loads: Floats = np.zeros((0, 0, 0, 0))
    """``[Z, Y, P, R]`` token-expert pairs of a token of each load profile that are expected on each
    rank, in layers that stand for all; without profiles where all mixes cost the same."""
    expert_alone_s: Floats = np.zeros((0, 0, 0, 0))
    """``[Z, G, S, M]`` seconds of a part's exchanges by themselves in all layers."""
    expert_s: Floats = np.zeros((0, 0, 0, 0, 0, 0))
    """``[Z, G, S, M, B, 7]`` seconds of ``EXPERT_PHASES``, all layers; mean load imbalance; bytes
    of weights the mean rank reads; token-expert pairs dropped in all layers."""
    is_filled: NDArray[np.bool_] = np.zeros((0, 0, 0, 0), dtype=np.bool_)
    """``[Z, G, S, M]`` whether an entry is filled; others are filled when a step needs them."""
    mixer_s: Floats = np.zeros((0, 0, 0))
    """``[M, A, T]`` seconds of all layers' mixers without attention over the context, on each kind
    of GPU in the cluster, by tokens of a data-parallel rank."""
    ffn_s: Floats = np.zeros((0, 0, 0))
    """``[M, A, T]`` seconds of all layers' feed-forward blocks without routed experts, and of what
    stands before a module's layers."""
    head_s: Floats = np.zeros((0, 0, 0))
    """``[M, A, n]`` seconds of the output matrix by sequences that get a token."""
    reduce_share: Floats = np.zeros(0)
    """``[M]`` all-reduces over those of the model."""
    expert_share: Floats = np.zeros(0)
    """``[M]`` layers with routed experts over those of the model."""
    halved_s: Floats = np.zeros((0, 0))
    """``[A, T]`` seconds of mixers, feed-forward blocks and all-reduces of the layers that
    two-batch overlap runs in halves, or of shared experts that compute beside the dispatch; 0
    without either."""
    num_parts: int = 1
    """Parts that a step's tokens pass those layers in: two halves, or one."""
    windows: Ints = np.zeros((0, 2), dtype=np.int64)
    """``[W, 2]`` window in entries of each distinct kind of attention context, for prefill and
    decode."""
    compressions: Ints = np.zeros(0, dtype=np.int64)
    """``[W]`` tokens of a cached entry of each kind of context."""
    tile_rows: Floats = np.zeros((0, 2))
    """``[W, 2]`` rows that are computed together, for each kind of context."""
    term_window: Ints = np.zeros((0, 0), dtype=np.int64)
    """``[A, J]`` kind of context of each context kernel."""
    term_layers: Floats = np.zeros((0, 0))
    """``[M, J]`` layers of each context kernel."""
    term_halved: Floats = np.zeros(0)
    """``[J]`` layers of each context kernel that run in halves."""
    term_bytes: Floats = np.zeros((0, 2))
    """``[J, 2]`` bytes of an entry in prefill and decode."""
    rates: Floats = np.zeros((0, 0, 0, 0))
    """``[A, J, 2, :]`` fields of :class:`simulator.cost.kernels.attention.Rates`."""
    expert_besides: Floats = np.zeros(0)
    """``[B]`` seconds that a part computes beside its exchanges, in ``expert_alone_s``; one entry
    where nothing is hidden."""
    wanted: Ints = np.full(4, -1, dtype=np.int64)
    """``[4]`` entry that the latest price lacked; -1 if none."""
    weight_bytes: Floats = np.zeros(0)
    """``[M]`` bytes of weights other than routed experts that a rank reads in every pass."""
    step_s: float = 0.0
    """Seconds of engine overhead of every step."""
    sequence_s: float = 0.0
    """Seconds of engine overhead of each sequence in a step."""
    prompt_s: float = 0.0
    """Seconds of engine overhead that a step with prompt tokens takes beyond one without."""
    factor: float = 1.0
    """Multiplier of all seconds."""
    decode_rows: int = 1
    """Most new tokens of a sequence that decode attention kernels take: one, and the draft
    tokens."""
    num_passes: int = 0
    """Passes of the module in a step, one for each token of a draft; 0 without one."""
    launch_s: float = 0.0
    """Seconds in which the kernels of such a pass are launched."""
    sends_s: Floats = np.zeros(0)
    """``[T]`` seconds of transfers through all stages of a pipeline, by tokens of a batch's fullest
    data-parallel rank; empty without one."""
    longest_stage: float = 0.0
    """Share of the layers in the longest stage."""
    last_stage: float = 0.0
    """Share of the layers in the last stage."""
    profile_tokens: Floats = np.zeros(0)
    """``[P]`` tokens of each load profile in all steps that were priced."""
    room_for_profiles: Floats = np.zeros(0)
    """Scratch space ``[P]`` of a step's tokens by load profile."""
    room_for_loads: Floats = np.zeros(0)
    """Scratch space ``[R]`` of the ranks' expected loads."""
    room_for_sums: Floats = np.zeros((0, 0, 0))
    """Scratch space ``[W, 2, NUM_SUMS]`` of a rank's price."""
    room_for_lanes: Floats = np.zeros((0, 0))
    """Scratch space ``[pp, columns]`` of the rows of a pipeline's lanes."""
    room_for_ends: Floats = np.zeros((0, 0))
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
    # The fastest protocol of all-reduces changes with the size.
    reduces = [
        (prices.all_reduces_s(numbers, d), prices.num_all_reduces, reduces_halved)
        for d in (first_K.tolist() if layout.tp > 1 else ())
    ]
    tokens, shares, besides = list_entries(prices)
    entries = (len(tokens), len(shares), len(mixes.prices_M))
    blocks = [price_blocks(own, mixers_halved, ffns_halved, reduces[:1]) for own in kinds]
    parts = [(prices, blocks)]
    if prices.module is not None:
        parts.append((prices.module, [price_module(own) for own in prices.module.kinds]))
    window_AJ = [[ways.index(way) for way in ways_J] for ways_J in ways_AJ]
    layers_MJ = [[part.mixer_layers[t.mixer] for t in terms] for part, _ in parts]
    bytes_J2 = [(t.prefill_bytes, t.decode_bytes) for t in terms]
    rates = [[[own.rates[t, phase] for phase in PHASES] for t in terms] for own in kinds]
    stages = stage_shares(placement)

    def repeat(of_state: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(of_state[None], len(first_K), axis=0)

    reduces_KT = [sum_layers(*block) for block in reduces] or repeat(np.zeros(len(numbers)))
    table = StepTable(
        mixer_s=np.array([[one.mixer_s for one in own] for _, own in parts]),
        ffn_s=np.array([[one.ffn_s for one in own] for _, own in parts]),
        head_s=np.array([[own.head_s for own in part.kinds] for part, _ in parts]),
        reduce_share=_divide([part.num_all_reduces for part, _ in parts]),
        expert_share=_divide([part.placement.model.num_moe_layers for part, _ in parts]),
        kind=repeat(placement.kind_R[:: layout.tp]),
        slow=repeat(_list_slow(placement)),
        group_class=repeat(class_D),
        collective_s=repeat(np.array(reduces_KT)),
        halved_s=np.stack([one.halved_s for one in blocks]),
        num_parts=2 if in_halves else 1,
        windows=np.array([view[0] for view in views], dtype=np.int64).reshape(-1, 2),
        compressions=np.array([view[1] for view in views[::2]], dtype=np.int64),
        tile_rows=np.array([view[2] for view in views], dtype=np.float64).reshape(-1, 2),
        term_window=np.array(window_AJ, dtype=np.int64),
        term_layers=np.array(layers_MJ, dtype=np.float64).reshape(len(parts), -1),
        term_halved=np.array([mixers_halved[t.mixer] for t in terms], dtype=np.float64),
        term_bytes=np.array(bytes_J2, dtype=np.float64).reshape(-1, 2),
        rates=np.array(rates, dtype=np.float64).reshape(len(kinds), -1, 2, len(Rates._fields)),
        sizes=repeat(np.array([*entries, mixes.load_YPR.shape[2]])),
        fullest=first_K,
        expert_tokens=repeat(tokens),
        expert_shares=repeat(shares),
        expert_imbalances=repeat(mixes.imbalance_M),
        profile_loads=repeat(mixes.load_YPR),
        expert_besides=besides,
        expert_alone_s=repeat(np.ones(entries)),
        expert_s=repeat(np.zeros((*entries, len(besides), NUM_COLUMNS))),
        is_filled=repeat(np.zeros(entries, dtype=np.bool_)),
        wanted=np.full(4, -1, dtype=np.int64),
        weight_bytes=np.array([part.read_bytes_per_step for part, _ in parts]),
        decode_rows=prices.decode_rows,
        num_passes=placement.drafts.num_tokens * (len(parts) - 1),
        launch_s=placement.drafts.launch_s,
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
    return change_engine(table, placement)


def change_engine(table: StepTable, placement: Placement) -> StepTable:
    """Replace the engine overhead in a table by that of a placement that is otherwise the same."""
    engine = placement.calibration.engine
    return table._replace(
        step_s=engine.step_s, sequence_s=engine.sequence_s, prompt_s=placement.prompt_s
    )


def _divide(counts: list[int]) -> Floats:
    """Counts of the parts over the model's, the first."""
    return np.array([1.0, *(count / max(1, counts[0]) for count in counts[1:])])


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
