"""Routers, experts and feed-forward blocks against loops, whole and in parts."""

import pytest
import torch

from simulator.config.ffns.dense import DenseFFN
from simulator.runtime.layers.experts import Experts
from simulator.runtime.layers.ffns.dense import Dense
from simulator.runtime.layers.ffns.moe import MixtureOfExperts
from simulator.runtime.layers.router import Router
from simulator.runtime.layers.weights import Part
from tests.runtime.layers_by_loops import (
    GROUPED,
    HIDDEN,
    SCORINGS,
    Noise,
    inputs,
    moe_of,
    same,
    slow_choice,
    slow_ffn,
    slow_moe,
    slow_scores,
)

pytestmark = pytest.mark.usefixtures("no_gradients")

CHOICES = [
    {"top_k": 1},
    {},
    {"top_k": 8},
    {"has_router_bias": True},
    GROUPED,
    {**GROUPED, "has_router_bias": True},
    {**GROUPED, "num_groups": 16, "num_limited_groups": 5},
]


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("keys", CHOICES)
def test_router_scores_chooses_and_weighs_as_a_loop_does(scoring, keys):
    moe, noise, x_TH = moe_of(scoring=scoring, **keys), Noise(), inputs(40, HIDDEN)
    router = Router(moe, HIDDEN)
    router.load(noise, "r")
    ids_TK, weight_TK = router(x_TH)
    same(weight_TK.sum(dim=1), torch.ones(40))
    for x_H, ids, weights in zip(x_TH.double(), ids_TK.tolist(), weight_TK.tolist(), strict=True):
        scores = slow_scores(noise, "r", x_H, scoring)
        assert ids == slow_choice(noise, "r", scores, moe)
        assert (
            len({e // (moe.num_experts // moe.num_groups) for e in ids}) <= moe.num_limited_groups
        )
        assert weights == pytest.approx(
            [scores[e] / sum(scores[other] for other in ids) for e in ids], rel=1e-4
        )


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_bias_moves_the_choice_and_not_the_weights(scoring):
    moe, x_TH = moe_of(scoring=scoring, has_router_bias=True), inputs(30, HIDDEN)
    plain, biased = Router(moe, HIDDEN), Router(moe, HIDDEN)
    for router, bias in (
        (plain, torch.zeros(8)),
        (biased, torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 9.0])),
    ):
        noise = Noise()
        router.load(noise, "r")
        router.bias.copy_(bias)
    ids_TK, weight_TK = biased(x_TH)
    assert set(ids_TK.flatten().tolist()) == {0, 7} != set(plain(x_TH)[0].flatten().tolist())
    same(weight_TK, plain(x_TH, ids_TK)[1])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_given_experts_are_used_even_where_their_scores_are_zero_in_fp32(scoring):
    router = Router(moe_of(scoring=scoring), HIDDEN)
    router.weight.copy_(torch.tensor([400.0, *[-400.0] * 7])[:, None] / HIDDEN)
    given = torch.tensor([[3, 5], [7, 0]])
    ids_TK, weight_TK = router(torch.ones(2, HIDDEN), given)
    assert ids_TK.tolist() == given.tolist()
    same(weight_TK, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    "rows_P", [[3, 3, 3, 3], [11, 0, 1, 0], [0, 0, 0, 5], [1, 0, 0, 0], [0, 0, 0, 0]]
)
def test_each_slots_tokens_go_through_its_own_expert_and_parts_add_up(rows_P, has_bias, is_gated):
    moe, noise, x_NH = (
        moe_of(is_gated=is_gated, has_expert_bias=has_bias),
        Noise(),
        inputs(sum(rows_P), HIDDEN),
    )
    expert_P = [5, 0, 7, 5]  # two slots hold copies of one expert
    expert_N = [expert for expert, rows in zip(expert_P, rows_P, strict=True) for _ in range(rows)]
    for size in (1, 2, 3, 4, 12):  # 10 features: even parts, uneven ones, and parts without any
        total = 0
        for rank in range(size):
            experts = Experts(moe, HIDDEN, expert_P, Part(rank, size))
            experts.load(noise, "e", x_NH)
            total = total + experts(x_NH, rows_P)
        expected = [
            slow_ffn(noise, f"e.{e}", x, is_gated)
            for e, x in zip(expert_N, x_NH.double(), strict=True)
        ]
        same(total, torch.stack(expected) if expected else torch.empty(0, HIDDEN))


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_tokens", [0, 1, 9])
def test_the_parts_of_a_dense_block_add_up_to_it_and_count_biases_once(
    num_tokens, has_bias, is_gated
):
    ffn, noise = (
        DenseFFN(kind="dense", intermediate_size=10, is_gated=is_gated, has_bias=has_bias),
        Noise(),
    )
    x_TH = inputs(num_tokens, HIDDEN)
    for size in (1, 2, 3, 4, 12):
        total = 0
        for rank in range(size):
            block = Dense(ffn, HIDDEN, Part(rank, size))
            block.load(noise, "f", x_TH)
            total = total + block(x_TH)
        expected = [slow_ffn(noise, "f", x_H, is_gated) for x_H in x_TH.double()]
        same(total, torch.stack(expected) if expected else torch.empty(0, HIDDEN))


MIXTURES = [
    *({"top_k": k} for k in range(1, 9)),
    {"is_gated": False, "has_expert_bias": True, "has_router_bias": True},
    {"num_shared_experts": 1, "shared_intermediate_size": 12},
    {
        "num_shared_experts": 2,
        "shared_intermediate_size": 14,
        "has_shared_gate": True,
        "scoring": "sigmoid",
    },
    {
        **GROUPED,
        "has_router_bias": True,
        "scoring": "sqrtsoftplus",
        "num_shared_experts": 1,
        "shared_intermediate_size": 9,
    },
    {"num_experts": 64, "top_k": 2},  # most experts get no token
    {"num_experts": 1, "top_k": 1},
]


@pytest.mark.parametrize("num_tokens", [0, 1, 13])
@pytest.mark.parametrize("keys", MIXTURES)
def test_a_mixture_of_experts_is_the_weighted_sum_of_each_tokens_experts(keys, num_tokens):
    moe, noise, x_TH = moe_of(**keys), Noise(), inputs(num_tokens, HIDDEN)
    layer = MixtureOfExperts(moe, HIDDEN)
    layer.load(noise, "m", x_TH)
    result, ids_TK = layer(x_TH)
    assert ids_TK.shape == (num_tokens, moe.top_k)
    for x_H, found in zip(x_TH.double(), result, strict=True):
        same(found, slow_moe(noise, "m", x_H, moe))
    given = torch.randn(num_tokens, moe.num_experts).argsort(dim=1)[:, : moe.top_k]
    for x_H, ids, found in zip(x_TH.double(), given.tolist(), layer(x_TH, given)[0], strict=True):
        same(found, slow_moe(noise, "m", x_H, moe, ids))
