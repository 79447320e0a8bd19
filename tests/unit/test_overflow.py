"""The overflow of a deployment: how it is asked for, what is refused, and what is said of it."""

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.deployment.facts import facts_of
from simulator.policies.overflow import count_next_choices, may_drop
from simulator.policies.overflow.capacity import Capacity

ROOMY = {"kind": "capacity", "factor": 1.25}


def test_nothing_is_dropped_unless_a_deployment_says_so(tiny):
    free, capped = (tiny.plan("moe", overflow=overflow) for overflow in (None, ROOMY))
    assert not may_drop(free.placement.experts.overflow)
    assert may_drop(capped.placement.experts.overflow)
    assert facts_of(free)["overflow"] is None
    assert facts_of(capped)["overflow"] == "capacity (factor 1.25)"
    assert (facts_of(free)["replica_choice"], facts_of(free)["spilling"]) == (None, None)
    near = tiny.plan("moe", replica_choice={"kind": "nearest"})
    assert facts_of(near)["replica_choice"] == "nearest"


def test_both_pools_drop(tiny):
    plan = tiny.plan("moe", overflow=ROOMY, prefill={"parallel": {"tp": 2}, "replicas": 1})
    assert [pool.placement.experts.overflow for pool in plan.pools] == [Capacity(factor=1.25)] * 2


@pytest.mark.parametrize("overflow", [ROOMY, {"kind": "none"}])
def test_a_dense_model_has_no_overflow(tiny, overflow):
    with pytest.raises(UserError, match=r"\[overflow\]: dense-4 is dense and routes nothing"):
        tiny.plan("dense", overflow=overflow)


def test_steps_too_large_to_be_counted_are_refused(tiny):
    scheduling = {"kind": "chunked", "token_budget": 1 << 20, "max_sequences": 4}
    keys = {"scheduling": scheduling, "cluster": "h100-sxm-128", "activation_bytes": 1e9}
    tiny.plan("moe", attention_dp=17, **keys)
    with pytest.raises(
        UserError, match="35,651,584 token-expert pairs, must be at most 33,554,432"
    ):
        tiny.plan("moe", attention_dp=17, overflow=ROOMY, **keys)
    tiny.plan("moe", attention_dp=16, overflow=ROOMY, **keys)


def test_next_choices_are_as_many_as_a_token_may_choose():
    """Where a model limits tokens to groups, to those of its groups."""
    assert count_next_choices(build("overflow", {"kind": "none"}, "test")) is None
    assert count_next_choices(build("overflow", {"kind": "top_k", "top_k": 1}, "test")) == 0
    assert count_next_choices(Capacity(factor=1.0)) is None
    assert count_next_choices(Capacity(factor=1.0, next_choices=3)) == 3


@pytest.mark.parametrize("routing", ["uniform", "lognormal", "group_limited"])
def test_the_pool_is_the_same_with_next_choices(tiny, routing):
    keys = {"num_groups": 4, "num_limited_groups": 2} if routing == "group_limited" else {}
    plain, ranked = (
        tiny.plan("moe", overflow=overflow, routing={"kind": routing, **keys}).placement.experts
        for overflow in (None, {**ROOMY, "next_choices": 99})
    )
    assert plain.next_LTN is None
    moe = tiny.plan("moe").placement.model.moe
    most = moe.num_experts // (2 if keys else 1)
    assert ranked.next_LTN.shape[2] == most - moe.top_k
    assert np.array_equal(np.sort(plain.topk_ids_LTK), np.sort(ranked.topk_ids_LTK))
    both = np.concatenate([ranked.topk_ids_LTK, ranked.next_LTN], axis=2)
    assert (np.diff(np.sort(both), axis=2) > 0).all()
    assert np.array_equal(plain.placed.expert_LP, ranked.placed.expert_LP)


def test_a_recording_has_no_next_choices_and_is_taken_to_be_in_order(tiny, tmp_path):
    moe = tiny.plan("moe").placement.model.moe
    layers = tiny.plan("moe").placement.model.num_moe_layers
    scores = np.random.default_rng(0).random((layers, 300, moe.num_experts))
    np.savez(tmp_path / "ids.npz", ids=scores.argsort(axis=2)[:, :, : moe.top_k])
    routing = {"kind": "replay", "trace": str(tmp_path / "ids.npz")}
    with pytest.raises(UserError, match="routing kind 'replay' knows the chosen experts only"):
        tiny.plan("moe", routing=routing, overflow={**ROOMY, "next_choices": 1})
    plan = tiny.plan("moe", routing=routing, overflow={"kind": "top_k", "top_k": 1})
    chosen = scores.argsort(axis=2)[:, :, 0]
    found = plan.placement.experts.topk_ids_LTK[:, :, 0]
    assert set(found[0].tolist()) <= set(chosen[0].tolist())
