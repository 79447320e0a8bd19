"""Laws of caches of experts: what is needed is found, fetched, brought or computed where it lies;
more slots never hurt; and hits equal those of caches that are written plainly.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.plugins import available, build
from simulator.policies.prefetching.none import Never
from simulator.work.expert_cache import CacheRules, replay_cache, spread_streams
from tests.cases import cases

SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 60), st.integers(1, 4), st.integers(4, 9), st.integers(0, 999)
)
"""Layers, tokens, experts of a token, experts, seed."""


def draw_ids(layers, tokens, top_k, num_experts, seed):
    """Choices of skewed popularity, ``[L, T, K]``."""
    rng = np.random.default_rng(seed)
    weights_LE = rng.lognormal(0, 1, (layers, 1, num_experts))
    scores_LTE = rng.exponential(1, (layers, tokens, num_experts)) / weights_LE
    return scores_LTE.argsort(axis=2)[:, :, :top_k].astype(np.int16)


def replay(kind, ids_LTK, num_experts, slots, streams=1, uploads=1 << 20, ahead=None, earlier=None):
    policy = build("caching", {"kind": kind}, "test")
    rules = CacheRules(slots, uploads, policy, ahead or Never())
    earlier_LTK = ids_LTK if earlier is None else earlier
    return replay_cache(rules, spread_streams(ids_LTK, streams), earlier_LTK, num_experts)


def held_by_lru(order, used, slots):
    for expert in sorted(used, reverse=True):
        if expert in order:
            order.remove(expert)
        order.insert(0, expert)
    del order[slots:]


def count_plainly(kind, ids_LTK, slots, streams, earlier_LTK):
    """Hits by step and layer, with a list and a dictionary for each layer."""
    layers, tokens, _ = ids_LTK.shape
    steps = tokens // streams
    hits_SL = np.zeros((steps, layers), dtype=np.int64)
    for layer in range(layers):
        counts, last = Counter(), {}
        chosen = Counter(earlier_LTK[layer].ravel().tolist())
        hot = sorted(chosen, key=lambda e: (-chosen[e], e))[:slots]
        held = hot if kind == "popularity" else []
        for step in range(steps):
            used = {
                expert
                for stream in range(streams)
                for expert in ids_LTK[layer, stream * steps + step].tolist()
            }
            hits_SL[step, layer] = len(used & set(held))
            counts.update(used)
            last.update(dict.fromkeys(used, step))
            if kind == "lru":
                held_by_lru(held, used, slots)
            elif kind == "lfu":
                held = sorted({*held, *used}, key=lambda e: (-counts[e], -last[e], e))[:slots]
    return hits_SL


@pytest.mark.parametrize("kind", ["lru", "lfu", "popularity"])
@cases(60)
@given(SHAPES, st.integers(1, 9), st.integers(1, 4))
def test_hits_equal_those_of_caches_written_plainly(kind, shape, slots, streams):
    ids_LTK = draw_ids(*shape)
    earlier_LTK = draw_ids(*shape[:4], shape[4] + 1)
    uses = replay(kind, ids_LTK, shape[3], slots, streams, earlier=earlier_LTK)
    plain_SL = count_plainly(kind, ids_LTK, slots, streams, earlier_LTK)
    assert np.array_equal(uses.held_SL, plain_SL) or not len(plain_SL)


@pytest.mark.parametrize("kind", available("caching"))
@pytest.mark.parametrize("ahead", available("prefetching"))
@cases(30)
@given(SHAPES, st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
def test_every_expert_that_is_needed_is_found_fetched_brought_or_computed_where_it_lies(
    kind, ahead, shape, slots, streams, uploads
):
    ids_LTK = draw_ids(*shape)
    policy = build("prefetching", {"kind": ahead}, "test")
    uses, again = (
        replay(kind, ids_LTK, shape[3], slots, streams, uploads, policy) for _ in range(2)
    )
    for one, other in zip(uses, again, strict=True):
        assert np.array_equal(one, other)
        assert (one >= 0).all()
    found_SL = uses.held_SL + uses.ahead_SL + uses.uploaded_SL + uses.below_SL
    assert np.array_equal(uses.used_SL, found_SL)
    ids_SLX = spread_streams(ids_LTK, streams)
    distinct = [[len(set(ids_X.tolist())) for ids_X in ids_LX] for ids_LX in ids_SLX]
    assert uses.used_SL.tolist() == distinct
    assert (uses.pairs_SL == ids_SLX.shape[2]).all()
    assert (uses.held_SL <= slots).all()
    assert (uses.uploaded_SL <= uploads).all()
    assert (uses.ahead_SL <= uses.fetched_SL).all()
    assert (uses.fetched_SL <= policy.experts).all()
    assert (uses.below_pairs_SL >= uses.below_SL).all()
    assert (uses.below_pairs_SL <= uses.pairs_SL).all()


@pytest.mark.parametrize("kind", available("caching"))
@cases(40)
@given(SHAPES, st.integers(1, 3))
def test_more_slots_never_hurt_and_room_for_all_leaves_first_uses(kind, shape, streams):
    ids_LTK = draw_ids(*shape)
    num_experts = shape[3]
    hits = [
        int(replay(kind, ids_LTK, num_experts, slots, streams).held_SL.sum())
        for slots in range(num_experts + 1)
    ]
    assert hits[0] == 0
    assert hits == sorted(hits)
    uses = replay(kind, ids_LTK, num_experts, num_experts, streams)
    first_uses = uses.uploaded_SL.sum(axis=0)
    assert (first_uses <= num_experts).all()
    assert (uses.held_SL + uses.uploaded_SL == uses.used_SL).all()


@cases(30)
@given(SHAPES)
def test_experts_that_layers_always_follow_with_are_fetched_before_they_are_asked_for(shape):
    layers, tokens, _, num_experts, seed = shape
    one_TK = draw_ids(1, tokens, 1, num_experts, seed)[0]
    ids_LTK = np.stack([(one_TK + layer) % num_experts for layer in range(layers)])
    policy = build("prefetching", {"kind": "successors", "experts": num_experts}, "test")
    uses = replay("lru", ids_LTK, num_experts, 1, ahead=policy)
    assert not uses.uploaded_SL[:, 1:].any()  # each expert of a layer has one that follows it
    assert (uses.ahead_SL[:, 0] == 0).all()  # nothing tells the first layer's
    assert np.array_equal(uses.fetched_SL, uses.ahead_SL)  # as many are named as are used


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (32, 4)])
@pytest.mark.parametrize("hit_rate", [0.0, 0.3, 0.8, 1.0])
def test_a_router_asked_ahead_is_right_as_often_as_its_key_says(hit_rate, num_experts, top_k):
    ids_LTK = draw_ids(4, 3000, top_k, num_experts, 5)
    keys = {"kind": "next_layer", "experts": num_experts, "hit_rate": hit_rate}
    policy = build("prefetching", keys, "test")
    empty = replay("lru", ids_LTK, num_experts, 0, ahead=policy)
    assert (empty.fetched_SL[:, 1:] == top_k).all()  # as many as are used, right or not
    assert not empty.fetched_SL[:, 0].any()  # nothing is known before the first layer
    share = empty.ahead_SL[:, 1:].sum() / empty.used_SL[:, 1:].sum()
    error = np.sqrt(hit_rate * (1 - hit_rate) / empty.used_SL[:, 1:].sum())
    assert abs(share - hit_rate) <= 4 * error
    half = replay("lru", ids_LTK, num_experts, num_experts // 2, ahead=policy)
    alone = replay("lru", ids_LTK, num_experts, num_experts // 2)
    assert np.array_equal(half.held_SL, alone.held_SL)  # what stays depends on uses alone
    assert half.fetched_SL.sum() < empty.fetched_SL.sum()  # what is held is not fetched
