"""Tokens of each expert in the benchmarks that timed routed experts, and so each slot of
the rank that was timed.

Tables name a distribution, not counts. What reproduces the measured ratios of skewed to balanced
kernels (fitted on ``moe_grouped_gemm``, H100 and B200) is this: experts draw loads from a density
``x^-alpha`` on ``[1, 0.8 tokens]``, or on ``[0.01, 2]`` where there are fewer token-expert pairs
than experts; loads are scaled to all pairs, none above the number of tokens, and rounded at random;
experts lie on ranks in their own order, and the busiest rank is timed. Every case is drawn a few
times, from a seed of its own, and predictions are means over the draws.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.policies.placement.contiguous import Contiguous

NUM_DRAWS = 4
"""Draws of a skewed load, whose mean is taken: tables say a law, not the draw that was timed."""
_BALANCED, _POWER_LAW = ("balanced", "uniform"), "power_law_"
_MOST_SKEWED = 10.0
"""Least exponent that is refused: far steeper than any that was timed."""
_MOST_SHARE, _FEWEST, _MOST_FEW = 0.8, 0.01, 2.0
"""Ends of the density that loads are drawn from, as above."""
_SAMPLED_TOKENS = 512
"""A router that limits groups is followed token by token; larger batches are scaled up from so
many."""
_ROWS_OF_A_BLOCK = 128
"""Rows of a block of DeepGEMM's contiguous layout."""
_SEED = 20
"""Seed of the draws; any would do."""


class Case(NamedTuple):
    """Benchmark of one table row, which the rows of each expert follow from."""

    num_tokens: int
    num_experts: int
    top_k: int
    num_ranks: int
    alpha: float | None
    """Exponent of the power law; ``None`` = balanced."""
    groups: tuple[int, int] | None = None
    """Groups of experts and how many of them a token may use, where the benchmark's router limits
    that (DeepSeek-V3)."""
    keeps_remote: bool = False
    """Whether the kernel also computes the other choices of each token that reaches the rank, as
    one more expert."""
    in_blocks: bool = False
    """Whether balanced means that experts are filled 128 rows at a time, one after the other."""


def exponent(distribution: str) -> tuple[float | None, str]:
    """The exponent that a table's name of a distribution stands for, ``None`` for balanced, and why
    there is none, or nothing.

    >>> exponent("power_law_1.2"), exponent("uniform")
    ((1.2, ''), (None, ''))
    """
    if distribution in _BALANCED:
        return None, ""
    before, is_power_law, text = distribution.partition(_POWER_LAW)
    try:
        alpha = float(text) if is_power_law and not before else 0.0
    except ValueError:
        alpha = 0.0
    return (alpha, "") if 0 < alpha < _MOST_SKEWED else (None, f"no distribution '{distribution}'")


@cache
def rank_rows(case: Case) -> Floats:
    """Rows of every slot of the timed rank, ``[D, G]``, one line a draw."""
    tokens_DE = expert_tokens(case.num_tokens, case.num_experts, case.top_k, case.alpha)
    rank_E = Contiguous().place(tokens_DE[:1], case.num_ranks, np.random.default_rng(0)).rank_LP[0]
    if case.in_blocks and case.alpha is None:
        return _fill_blocks(case, int((rank_E == 0).sum()))
    found = []
    for tokens_E in tokens_DE:
        rows_R = np.bincount(rank_E, weights=tokens_E, minlength=case.num_ranks)
        timed = 0 if case.alpha is None else int(rows_R.argmax())
        if case.groups is not None:
            # The busiest rank's experts change places with the first rank's, which matters to a
            # router that breaks ties by place.
            first, busiest = np.flatnonzero(rank_E == 0), np.flatnonzero(rank_E == timed)
            size, places = min(len(first), len(busiest)), np.arange(case.num_experts)
            places[first[:size]], places[busiest[:size]] = busiest[:size], first[:size]
            tokens_E, timed = _limit_groups(case, case.groups, tokens_E[places]), 0
        rows_G = tokens_E[rank_E == timed]
        if case.keeps_remote and case.num_ranks > 1:
            arriving = min(float(case.num_tokens), float(rows_G.sum()))
            rows_G = np.append(rows_G, max(arriving * case.top_k - rows_G.sum(), 0.0))
        found.append(rows_G)
    return np.stack(found)


@cache
def expert_tokens(num_tokens: int, num_experts: int, top_k: int, alpha: float | None) -> Floats:
    """Tokens of every expert, ``[D, E]``; one draw where nothing is drawn."""
    if alpha is None:
        # After as many tokens as experts it begins again.
        rounds, rest = divmod(num_tokens, num_experts)
        ids_TK = _balanced_ids(rest + num_experts * min(rounds, 1), num_experts, top_k)
        counts_E = np.bincount(ids_TK.ravel(), minlength=num_experts).astype(np.float64)
        return (counts_E + float(top_k * max(rounds - 1, 0)))[None]
    rng = np.random.default_rng([_SEED, num_tokens, num_experts, top_k, round(alpha * 1000)])
    pairs = num_tokens * top_k
    low, high = _FEWEST, _MOST_FEW
    if pairs > num_experts:
        low, high = 1.0, max(_MOST_SHARE * num_tokens, 2.0)
    uniform_DE = rng.random((NUM_DRAWS, num_experts))
    power = 1.0 - alpha
    loads_DE = low * (high / low) ** uniform_DE
    if power != 0:
        loads_DE = (low**power + (high**power - low**power) * uniform_DE) ** (1 / power)
    share_DE = loads_DE / loads_DE.sum(axis=1, keepdims=True) * pairs
    share_DE = _cap_shares(share_DE, float(num_tokens))
    # Rounded up or down at random, so that the total stays: the whole numbers that the running sum
    # passes.
    passed_DE = np.floor(np.cumsum(share_DE, axis=1) + rng.random((NUM_DRAWS, 1)))
    return np.diff(passed_DE, axis=1, prepend=0.0)


def _cap_shares(share_DE: Floats, most: float) -> Floats:
    """Shares with the totals kept and none above ``most``: the rest goes to the others in
    proportion.
    """
    for _ in range(32):
        excess_D = np.maximum(share_DE - most, 0.0).sum(axis=1, keepdims=True)
        if not (excess_D > 1e-6).any():
            break
        below_DE = np.where(share_DE < most, share_DE, 0.0)
        total_D = below_DE.sum(axis=1, keepdims=True)
        share_DE = np.minimum(share_DE, most) + below_DE * excess_D / np.where(
            total_D > 0, total_D, np.inf
        )
    return share_DE


def _balanced_ids(num_tokens: int, num_experts: int, top_k: int) -> Ints:
    """Experts of each token ``[T, K]``: evenly spaced, and tokens too few to reach every expert are
    spaced evenly as well.
    """
    stride = -(-num_experts // top_k)
    first_T = np.arange(num_tokens) * max(1.0, stride / max(num_tokens, 1))
    ids = (first_T[:, None] + np.arange(top_k) * stride).astype(np.int64)
    return ids % num_experts


def _limit_groups(case: Case, groups: tuple[int, int], tokens_E: Floats) -> Floats:
    """Tokens of every expert after a router that keeps each token within a few groups.

    The benchmark wishes for experts by scoring them 1 and all others 0. Groups are chosen by their
    two best scores; wishes in other groups are lost, and the first experts of the chosen groups
    take their place.
    """
    num_groups, num_kept = groups
    size, num_experts, top_k = case.num_experts // num_groups, case.num_experts, case.top_k
    sampled = min(case.num_tokens, _SAMPLED_TOKENS)
    if case.alpha is None:
        ids_TK = _balanced_ids(sampled, num_experts, top_k)
    else:
        scaled_E = np.rint(tokens_E * (sampled / case.num_tokens)).astype(np.int64)
        order = np.argsort(-scaled_E, kind="stable")
        wishes = np.resize(np.repeat(order, scaled_E[order]), sampled * top_k)
        ids_TK = wishes.reshape(
            top_k, sampled
        ).T  # the pairs of one expert go to tokens that follow each other
    wished_TE = np.zeros((sampled, num_experts))
    np.add.at(wished_TE, (np.arange(sampled)[:, None], ids_TK), 1.0)
    best_TG = np.sort(wished_TE.reshape(sampled, num_groups, size), axis=2)[:, :, -2:].sum(axis=2)
    kept_TG = np.zeros((sampled, num_groups), dtype=bool)
    np.put_along_axis(
        kept_TG, np.argsort(-best_TG, axis=1, kind="stable")[:, :num_kept], True, axis=1
    )
    score_TE = np.where(np.repeat(kept_TG, size, axis=1), wished_TE, -1.0)
    chosen_TK = np.argsort(-score_TE, axis=1, kind="stable")[:, :top_k]
    counts_E = np.bincount(chosen_TK.ravel(), minlength=num_experts).astype(np.float64)
    return np.asarray(np.rint(counts_E * (case.num_tokens / sampled)))


def _fill_blocks(case: Case, num_slots: int) -> Floats:
    rows = case.num_tokens * case.top_k / case.num_ranks
    rows_G = np.clip(rows - _ROWS_OF_A_BLOCK * np.arange(num_slots), 0.0, float(_ROWS_OF_A_BLOCK))
    return np.asarray(
        np.maximum(rows_G, rows / num_slots if rows > _ROWS_OF_A_BLOCK * num_slots else 0.0)[None],
        dtype=np.float64,
    )
