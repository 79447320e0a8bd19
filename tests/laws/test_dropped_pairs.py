"""No count counts a token-expert pair that was dropped: each is held to a count by loops."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.plugins import build
from simulator.policies.placement import Placed
from simulator.policies.token_counts import count_arrivals, count_stays
from simulator.work.slots import SlotMap, spread_over_parts
from tests.cases import cases

QUICK = cases(60)
DROPPED = -1
a_batch = st.tuples(
    st.integers(0, 60), st.integers(1, 6), st.sampled_from([(1, 8), (8, 4), (9, 4), (8, 8)])
)


def draw_ranks(batch, share, seed):
    """``rank_TK`` with a share of its pairs dropped, ``source_T`` and ``node_R``."""
    num_tokens, top_k, (num_ranks, per_node) = batch
    rng = np.random.default_rng(seed)
    rank_TK = rng.integers(0, num_ranks, (num_tokens, top_k))
    rank_TK[rng.random(rank_TK.shape) < share] = DROPPED
    return rank_TK, rng.integers(0, num_ranks, num_tokens), np.arange(num_ranks) // per_node


def copies_by_loops(kind, rank_TK, source_T, node_R):
    """What a dispatch policy sends, token by token, of the pairs that are left."""
    sent, num_ranks = Counter(), len(node_R)
    per_node = int((node_R == node_R[0]).sum())
    for ranks_K, source in zip(rank_TK.tolist(), source_T.tolist(), strict=True):
        ranks = [rank for rank in ranks_K if rank != DROPPED]
        if kind == "all_gather":
            sent.update((source, rank) for rank in range(num_ranks))
        elif kind == "per_expert":
            sent.update((source, rank) for rank in ranks)
        elif kind == "per_rank":
            sent.update((source, rank) for rank in set(ranks))
        else:
            for node in {int(node_R[rank]) for rank in ranks}:
                first, relay = node * per_node, source
                if node != node_R[source]:
                    relay = first + source % per_node % min(per_node, num_ranks - first)
                    sent[source, relay] += 1
                sent.update((relay, rank) for rank in set(ranks) if node_R[rank] == node)
    copies_SR = np.zeros((num_ranks, num_ranks))
    for (source, rank), count in sent.items():
        copies_SR[source, rank] = count * (source != rank)
    return copies_SR


@QUICK
@given(
    a_batch,
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.integers(0, 1000),
    st.sampled_from(["per_expert", "per_rank", "per_node", "all_gather"]),
)
def test_copies_and_rows_are_of_what_is_kept(batch, share, seed, kind):
    rank_TK, source_T, node_R = draw_ranks(batch, share, seed)
    policy = build("dispatch", {"kind": kind}, "test")
    copies_SR = policy.copies(rank_TK, source_T, node_R)
    assert np.array_equal(copies_SR, copies_by_loops(kind, rank_TK, source_T, node_R))
    if kind == "per_node" and node_R.any():
        return
    rows = policy.rows(rank_TK, node_R)
    token_N, place_N = np.nonzero(rows.choice_NW >= 0)
    choice_N = rows.choice_NW[token_N, place_N]
    named = rank_TK[rows.token_N[token_N], choice_N]
    assert np.array_equal(named, rows.rank_N[token_N])  # no row names a pair that was dropped
    assert len(named) == (rank_TK != DROPPED).sum()  # and every other is in one
    is_own = rows.rank_N == source_T[rows.token_N]
    sent_SR = np.zeros_like(copies_SR)
    np.add.at(sent_SR, (source_T[rows.token_N], rows.rank_N), ~is_own)
    assert np.array_equal(sent_SR, copies_SR)


@QUICK
@given(a_batch, st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 1000))
def test_arrivals_and_stays_are_of_what_is_kept(batch, share, seed):
    rank_TK, source_T, node_R = draw_ranks(batch, share, seed)
    num_ranks = len(node_R)
    reached = [set(ranks_K) - {DROPPED} for ranks_K in rank_TK.tolist()]
    arrived = Counter(rank for ranks in reached for rank in ranks)
    stayed = Counter(s for s, ranks in zip(source_T.tolist(), reached, strict=True) if s in ranks)
    for found, counted in (
        (count_arrivals(rank_TK, num_ranks), arrived),
        (count_stays(rank_TK, source_T, num_ranks), stayed),
    ):
        assert found.tolist() == [counted[rank] for rank in range(num_ranks)]


@QUICK
@given(
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(1, 4),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(0, 1000),
)
def test_slots_ranks_and_rows_are_of_what_is_kept(experts, extra, ranks, tokens, share, seed):
    """Copies of an expert take turns by the token's place, whoever is dropped."""
    rng = np.random.default_rng(seed)
    expert_P = rng.permutation([*range(experts), *rng.integers(0, experts, extra)])
    rank_P = rng.integers(0, ranks, len(expert_P))
    slots = SlotMap(Placed(expert_P[None], rank_P[None], ranks), 0, experts)
    top_k = int(rng.integers(1, experts + 1))
    ids_TK = rng.random((tokens, experts)).argsort(axis=1)[:, :top_k]
    is_kept_TK = rng.random(ids_TK.shape) >= share
    all_TK = slots.slots(ids_TK)
    holders = [np.flatnonzero(expert_P == expert) for expert in range(experts)]
    assert all_TK.tolist() == [
        [holders[expert][t % len(holders[expert])] for expert in ids_K]
        for t, ids_K in enumerate(ids_TK)
    ]
    slot_TK = slots.slots(np.where(is_kept_TK, ids_TK, DROPPED))
    assert np.array_equal(slot_TK, np.where(is_kept_TK, all_TK, DROPPED))
    rank_TK = np.where(is_kept_TK, rank_P[all_TK], DROPPED)
    assert np.array_equal(slots.ranks(slot_TK), rank_TK)
    assert sorted(slots.rows(slot_TK)[slots.rows(slot_TK) > 0]) == sorted(
        Counter(all_TK[is_kept_TK].tolist()).values()
    )
    assert slots.rows(slot_TK).sum(axis=1).tolist() == [
        (rank_TK == rank).sum() for rank in range(ranks)
    ]
    parts = spread_over_parts(rank_TK, 3)
    assert parts.shape == (tokens, 3 * top_k)
    assert Counter(parts[parts >= 0].tolist()) == {
        3 * rank + part: count
        for rank, count in Counter(rank_TK[is_kept_TK].tolist()).items()
        for part in range(3)
    }
    assert (parts[np.repeat(~is_kept_TK, 3, axis=1)] == DROPPED).all()
