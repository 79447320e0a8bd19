"""Seconds of a formed step, read from the table: of one data-parallel group, of the lanes of a
pipeline, and of routed experts between the table's entries. Compiled.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit_inner
from simulator.cost.engine_time import sequences_s
from simulator.cost.kernels.context import split_s, work_s
from simulator.engine.batching import computes, is_decode
from simulator.engine.state import Ranks, Requests
from simulator.engine.table import StepTable
from simulator.work.context import add_decodes, add_sums

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
    factor = table.slowdown * table.factor
    if num_lanes == 1:
        _price_lane(requests, ranks, table, z, 0, num_dp, row)
        if table.wanted[0] >= 0:
            return math.nan
        if factor != 1.0:
            slow_down(row, factor, table.slowdown)
        return float(row[ATTENTION : ATTENTION + 8].sum())
    lanes, head_s, sends_s = table.room_for_lanes, table.room_for_ends[0], table.room_for_ends[1]
    lanes[:] = 0.0
    for lane in range(num_lanes):
        if computes(ranks, lane * num_dp, (lane + 1) * num_dp):
            head, fullest = _price_lane(
                requests, ranks, table, z, lane * num_dp, (lane + 1) * num_dp, lanes[lane]
            )
            head_s[lane], sends_s[lane] = head, table.sends_s[fullest]
            lanes[lane, ATTENTION + 6] += sends_s[lane]
    if table.wanted[0] >= 0:
        return math.nan
    parts, ends = lanes[:, ATTENTION:], (table.longest_stage, table.last_stage)
    duration_s = float(price_pipeline(parts, head_s, sends_s, num_lanes, ends[0], ends[1], row))
    if factor != 1.0:
        slow_down(row, factor, 1.0)
    return duration_s * factor


@jit_inner
def count_profiles(table: StepTable) -> None:
    """Count the tokens of the step that was priced last by their load profiles."""
    total, tokens_P = table.profile_tokens, table.room_for_profiles
    for p in range(len(total)):
        total[p] += tokens_P[p]


@jit_inner
def slow_down(row: NDArray[np.float64], factor: float, passes: float) -> None:
    """Multiply the parts of a step's time by ``factor``.

    Args:
        passes: passes through the model's layers, those that draft tokens included, which read as
            many bytes each.
    """
    for c in range(8):
        row[ATTENTION + c] *= factor
    row[ATTENTION + 9] *= passes


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
    first: int,
    end: int,
    row: NDArray[np.float64],
) -> tuple[float, int]:
    """Price the batches of ranks ``first`` to ``end``, which step together through every layer;
    those that are lost do not.

    Returns:
        Seconds of the output matrix, and tokens of the fullest rank.
    """
    running, chunk, each, rows = ranks.running, ranks.chunk, ranks.each, requests.each
    windows, compressions, tile_rows = table.windows, table.compressions, table.tile_rows
    term_layers, term_halved, term_bytes = (
        table.term_layers,
        table.term_halved,
        table.term_bytes,
    )
    kind = table.kind[z]
    slow, group_class, collective_s = table.slow[z], table.group_class[z], table.collective_s[z]
    decode_rows = table.decode_rows
    num_ranks, num_ways, num_terms = end - first, len(windows), len(term_layers)
    for d in range(first, end):
        num_ranks -= each[d].is_lost
    sums, tokens_P = table.room_for_sums, table.room_for_profiles
    tokens_P[:] = 0.0
    attention = dense = collective = slowest = beside = heading = 0.0
    read_bytes = table.weight_bytes
    total_tokens = fullest = fullest_class = most_sequences = prompts = 0
    for d in range(first, end):
        rank = each[d]
        if rank.is_lost:
            continue
        sums[:] = 0.0
        tokens = sequences = logits = decodes = rank.num_decodes
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
            tokens += new
            sequences += 1
            if len(tokens_P):
                tokens_P[request.profile] += new
            decoding = 1 if is_decode(request.num_input, request.generated, context) else 0
            # Every token of a draft is compared with the model's own.
            if decoding:
                logits += new
            else:
                logits += context + new == request.num_input + request.generated
            prompts += 1 - decoding
            decodes += decoding
            for w in range(num_ways):
                phase = 1 if new <= decode_rows else 0
                add_sums(
                    sums[w, phase],
                    context,
                    new,
                    windows[w, phase],
                    compressions[w],
                    tile_rows[w, phase],
                )
        a = kind[d - first]
        rates = table.rates[a]
        mixing, halving = table.mixer_s[a, tokens], table.halved_s[a, tokens]
        for j in range(num_terms):
            way = table.term_window[a, j]
            for phase in range(2):
                if sums[way, phase, 4] > 0.0:
                    floor_s, attention_s = (
                        rates[j, phase, 0],
                        work_s(rates[j, phase], sums[way, phase]),
                    )
                    read_bytes += (
                        term_layers[j] * sums[way, phase, 1] * term_bytes[j, phase] / num_ranks
                    )
                    mixing += term_layers[j] * (floor_s + attention_s)
                    if (
                        term_halved[j] > 0.0
                    ):  # decodes are in the first half, and in both where they are more than that
                        more = (
                            decodes > tokens - tokens // 2
                            if phase == 1
                            else tokens - decodes > tokens // 2
                        )
                        once_s = floor_s + split_s(rates[j, phase], sums[way, phase])
                        mixing += term_halved[j] * once_s * more
                        halving += term_halved[j] * (floor_s + attention_s + once_s * more)
        heading_s = table.head_s[a, logits]
        feeding = table.ffn_s[a, tokens] + heading_s
        reducing = collective_s[group_class[d - first], tokens]
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
        _interpolate_experts(
            table, state, total_tokens, share, imbalance, beside / table.num_parts, row
        )
    row[ATTENTION + 6] = collective
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
def _find_interval(grid: NDArray[np.float64], size: int, value: float) -> int:
    """Index of the interval that ``value`` lies in, or of the nearest one, in the first ``size``
    values of a grid.
    """
    low, high = 0, size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if grid[middle] <= value:
            low = middle
        else:
            high = middle
    return low


@jit_inner
def _interpolate_experts(
    table: StepTable,
    z: int,
    tokens: int,
    share: float,
    imbalance: float,
    beside_s: float,
    row: NDArray[np.float64],
) -> None:
    """Add the routed experts' part: linear in tokens, in the fullest rank's share and in the
    imbalance of the expected load between table entries, and in the latter beyond them.

    Args:
        beside_s: what a part computes beside its exchanges in all layers.
    """
    sizes = table.sizes
    tokens_G, shares_S, at_M = (
        table.expert_tokens[z],
        table.expert_shares[z],
        table.expert_imbalances[z],
    )
    g = _find_interval(tokens_G, sizes[z, 0], tokens)
    low, high = tokens_G[g], tokens_G[g + 1]
    a = min(max((tokens - low) / (high - low), 0.0), 1.0)
    s, b = 0, 0.0
    if sizes[z, 1] > 1:
        s = _find_interval(shares_S, sizes[z, 1], share)
        b = (share - shares_S[s]) / (shares_S[s + 1] - shares_S[s])
        b = min(max(b, 0.0), 1.0)
    s2 = min(s + 1, sizes[z, 1] - 1)
    m, e = 0, 0.0
    if sizes[z, 2] > 1:
        m = _find_interval(at_M, sizes[z, 2], imbalance)
        e = (imbalance - at_M[m]) / (at_M[m + 1] - at_M[m])
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
        x, y = 0, 0.0
        if len(table.expert_besides) > 1:
            beside = beside_s / table.expert_alone_s[z, at_g, at_s, at_m]
            x = _find_interval(table.expert_besides, len(table.expert_besides), beside)
            y = (beside - table.expert_besides[x]) / (
                table.expert_besides[x + 1] - table.expert_besides[x]
            )
            y = min(max(y, 0.0), 1.0)
        x2 = min(x + 1, len(table.expert_besides) - 1)
        for c in range(7):
            low, high = (
                table.expert_s[z, at_g, at_s, at_m, x, c],
                table.expert_s[z, at_g, at_s, at_m, x2, c],
            )
            value = low * (1 - y) + high * y
            row[ATTENTION + 2 + c + (2 if c >= 4 else 0)] += value * weight_g * weight_s * weight_m
