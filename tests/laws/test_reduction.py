"""Fewer experts: counts that are conserved, memory that falls, popularity that is kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.plugins import available, build
from simulator.config.ffns.moe import MoE
from simulator.deployment.facts import facts_of
from simulator.deployment.reduction import find_repeated, reduce_router
from simulator.policies.contracts import prepare_router, reduce_experts
from simulator.policies.routing.lognormal import Lognormal
from simulator.step.prices import Prices
from tests.cases import cases
from tests.parts import freeze

KINDS = available("reduction")


@st.composite
def reductions(draw):
    """A kind of reduction, the experts before it, and a router of theirs."""
    num_experts = draw(st.integers(2, 40))
    top_k = draw(st.integers(1, min(num_experts, 6)))
    whole = MoE(kind="moe", num_experts=num_experts, top_k=top_k, intermediate_size=8)
    left = draw(st.integers(1, num_experts))
    wanted = draw(st.integers(1, min(top_k, left)))
    policy = build("reduction", {"kind": draw(st.sampled_from(KINDS)), "num_experts": left}, "test")
    router = prepare_router(Lognormal(), whole, 2, np.random.default_rng(draw(st.integers(0, 99))))
    return policy, whole, left, wanted, router


@cases(60)
@given(case=reductions())
def test_every_token_has_top_k_distinct_experts_of_those_left(case):
    policy, whole, left, top_k, router = case
    few = whole.model_copy(update={"num_experts": left, "top_k": top_k})
    reduced = reduce_router(router, whole, few, 2, policy, seed=3)
    runs = np.array([1, 5, 30])
    before = router.topk_ids(1, runs, np.random.default_rng(7)).astype(np.int64)
    after = reduced.topk_ids(1, runs, np.random.default_rng(7)).astype(np.int64)
    assert after.shape == (36, top_k)
    assert after.min() >= 0
    assert after.max() < left
    assert not find_repeated(after).any()
    becomes_TK = reduced.becomes_LE[1][before]
    for own, passed_on in zip(after, becomes_TK, strict=True):
        kept = list(dict.fromkeys(one for one in passed_on if one >= 0))
        assert set(kept[:top_k]) <= set(own)  # what is left of a choice stays one
    if left == whole.num_experts and top_k == whole.top_k:
        assert np.array_equal(np.sort(before), np.sort(after))


@pytest.mark.parametrize("kind", KINDS)
@cases(60)
@given(
    seed=st.integers(0, 10**6),
    num_experts=st.integers(1, 30),
    share=st.floats(0.01, 1),
)
def test_the_experts_left_are_those_that_most_tokens_chose(kind, seed, num_experts, share):
    rng, left = np.random.default_rng(seed), max(1, int(share * num_experts))
    load_E = rng.integers(0, 50, num_experts).astype(float)
    pairs_EE = rng.integers(0, 5, (num_experts, num_experts)).astype(float)
    policy = build("reduction", {"kind": kind, "num_experts": left}, "test")
    becomes_E = reduce_experts(policy, load_E, pairs_EE)
    gone = load_E[becomes_E < 0]
    heaviest = np.sort(load_E)[::-1][:left]
    if kind == "prune":
        assert sorted(load_E[becomes_E >= 0], reverse=True) == heaviest.tolist()
        assert not gone.size or gone.max() <= heaviest.min()
    else:
        assert not gone.size  # all tokens of all experts go somewhere
        assert np.bincount(becomes_E, weights=load_E).sum() == load_E.sum()


def deployment(**more):
    table = {
        "name": "a",
        "model": "olmoe-1b-7b",
        "cluster": "h100-sxm-8",
        "parallel": {"attention_dp": 4, "ep": 4},
        "replicas": 1,
        **more,
    }
    return freeze(table)


def reduced(kind, num_experts, **more):
    return deployment(reduction={"kind": kind, "num_experts": num_experts, **more})


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_experts_take_exactly_their_share_of_memory_and_never_more(kind):
    plans = [reduced(kind, left) for left in (64, 48, 32, 8)]
    held = [plan.serving.capacity.weights_bytes for plan in plans]
    assert held[0] == deployment().serving.capacity.weights_bytes
    moe, hidden = plans[0].placement.model.moe, plans[0].placement.model.hidden_size
    layers = plans[0].placement.model.num_moe_layers
    expert, router_row = moe.num_expert_parameters(hidden) * 2, hidden * 2
    for plan, num_bytes in zip(plans, held, strict=True):
        gone = 64 - plan.placement.model.moe.num_experts
        assert held[0] - num_bytes == gone * layers * (expert / 4 + router_row)
        assert plan.placement.experts.placed.expert_LP.shape[1] == 64 - gone


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_a_step_are_conserved(kind):
    plan = reduced(kind, 24, top_k=4)
    prices = Prices(plan.placement, 256, np.array([1, 256]))
    step = prices.expert_step(0, np.array([64, 1, 0, 200]), 5)
    assert step.pairs_R.sum() == 265 * 4
    assert step.dropped_pairs == 0


def test_a_lower_top_k_alone_leaves_all_experts_and_computes_less():
    whole, fewer = deployment(), reduced("prune", 64, top_k=4)
    assert fewer.placement.model.num_parameters == whole.placement.model.num_parameters
    assert fewer.placement.model.num_active_parameters < whole.placement.model.num_active_parameters
    kept = fewer.placement.experts.topk_ids_LTK
    assert kept.shape[2] == 4
    # Which experts are the same: no choice becomes another one.
    before = whole.placement.experts.topk_ids_LTK
    assert (kept[..., None] == before[:, :, None, :]).any(axis=3).all()


def test_choices_among_those_left_follow_their_popularity():
    """A token that loses an expert takes one as often as others do: no expert gains more than
    chance says (six standard deviations of a binomial).
    """
    whole, fewer = deployment(), reduced("prune", 56)
    before_E = np.bincount(whole.placement.experts.topk_ids_LTK[0].ravel(), minlength=64)
    after_E = np.bincount(fewer.placement.experts.topk_ids_LTK[0].ravel(), minlength=56)
    assert after_E.sum() == before_E.sum() == 4096 * 8
    expected = np.sort(before_E)[::-1][:56]
    expected = expected / expected.sum()
    found = np.sort(after_E)[::-1] / after_E.sum()
    assert np.abs(found - expected).max() < 0.25 * expected.max()


def test_a_recording_is_reduced_token_by_token():
    keys = {"model": "olmoe-1b-7b", "routing": {"kind": "lognormal", "num_domains": 3}}
    plan = deployment(**keys, reduction={"kind": "merge", "num_experts": 16})
    sequences = plan.placement.experts.domains.sequences
    assert sequences.ids_LTK.max() == 15
    assert sequences.ids_LTK.min() == 0
    assert not find_repeated(sequences.ids_LTK[0].astype(np.int64)).any()


def test_a_reduced_model_says_what_it_is_and_that_its_quality_is_unknown():
    facts = facts_of(reduced("merge", 16))
    assert facts["model"] == "olmoe-1b-7b-16-of-64-experts-top-8"
    assert facts["reduction"].startswith("merge (num_experts 16")
    assert any("fewer experts cost in quality" in text for text in facts["warnings"])
