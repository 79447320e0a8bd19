"""Laws of routing and placement, for any shape."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.ffns.moe import MoE
from simulator.policies.placement.contiguous import Contiguous
from simulator.policies.placement.eplb import Eplb
from simulator.policies.placement.greedy import Greedy
from simulator.policies.routing._popularity import LARGEST_INCLUSION, choose, inclusion
from simulator.policies.routing.lognormal import Lognormal
from simulator.policies.routing.uniform import Uniform
from simulator.policies.routing.zipf import Zipf
from tests.cases import cases

quick = cases(40)


@st.composite
def shapes(draw):
    num_groups = draw(st.integers(1, 8))
    limited = draw(st.integers(1, num_groups))
    group_size = draw(st.integers(1, 16))
    top_k = draw(st.integers(1, min(8, limited * group_size)))
    return MoE(
        kind="moe",
        num_experts=num_groups * group_size,
        top_k=top_k,
        intermediate_size=1,
        num_groups=num_groups,
        num_limited_groups=limited,
    )


@st.composite
def loads(draw):
    num_experts = draw(st.integers(1, 40))
    num_ranks = draw(st.integers(1, num_experts))
    rows = st.lists(st.integers(0, 1000), min_size=num_experts, max_size=num_experts)
    return np.array(draw(st.lists(rows, min_size=1, max_size=3)), dtype=np.float64), num_ranks


@quick
@given(
    shape=shapes(),
    sigma=st.floats(0, 3),
    persistence=st.floats(0, 0.9),
    affinity=st.floats(0, 1),
    run_lengths=st.lists(st.integers(0, 40), max_size=5),
    seed=st.integers(0, 99),
)
def test_pairs_are_conserved_and_stay_within_the_groups(
    shape, sigma, persistence, affinity, run_lengths, seed
):
    rng = np.random.default_rng(seed)
    policy = Lognormal(sigma=sigma, num_domains=2, persistence=persistence, affinity=affinity)
    topk_ids_TK = policy.prepare(shape, 2, rng).topk_ids(
        1, np.array(run_lengths, dtype=np.int64), rng
    )
    num_tokens = sum(run_lengths)
    assert (
        np.bincount(topk_ids_TK.ravel(), minlength=shape.num_experts).sum()
        == num_tokens * shape.top_k
    )
    for ids_K in topk_ids_TK:
        assert len(set(ids_K.tolist())) == shape.top_k
        assert (
            len(set((ids_K // (shape.num_experts // shape.num_groups)).tolist()))
            <= shape.num_limited_groups
        )


@quick
@given(shape=shapes(), seed=st.integers(0, 99))
def test_choice_is_the_best_experts_of_the_best_groups(shape, seed):
    """Against the definition, one token at a time: arXiv 2412.19437 section 2.1.2, with scores as
    logarithms.
    """
    keys_TE = np.random.default_rng(seed).random((5, shape.num_experts), dtype=np.float32)
    for keys_E, ids_K in zip(keys_TE, choose(keys_TE, shape), strict=True):
        groups = (-np.log(keys_E.astype(np.float64))).reshape(shape.num_groups, -1)
        best = np.argsort(-np.sort(groups, axis=1)[:, -2:].sum(axis=1))[: shape.num_limited_groups]
        open_experts = [e for e in range(shape.num_experts) if e // groups.shape[1] in best]
        assert sorted(ids_K.tolist()) == sorted(
            sorted(open_experts, key=lambda e: keys_E[e])[: shape.top_k]
        )


@quick
@given(
    share=st.lists(st.floats(0, 1e6), min_size=1, max_size=64).filter(
        lambda values: sum(values) > 1e-3
    ),
    data=st.data(),
)
def test_inclusion_chances_sum_to_top_k_in_the_order_of_popularity(share, data):
    share_E = np.array(share)
    top_k = data.draw(st.integers(1, len(share)))
    chance_E = inclusion(share_E, top_k)
    possible = LARGEST_INCLUSION * len(share)
    assert np.isclose(chance_E.sum(), min(top_k, possible), rtol=1e-6)
    assert (chance_E > 0).all()
    assert (np.diff(chance_E[np.argsort(share_E, kind="stable")]) >= -1e-12).all()


def test_zipf_with_exponent_0_and_lognormal_with_sigma_0_are_uniform():
    """Each expert is used by K/E of the tokens: 5 standard deviations of a binomial, for 64
    experts.
    """
    moe = MoE(kind="moe", num_experts=64, top_k=6, intermediate_size=1)
    num_tokens = 20_000
    expected = num_tokens * 6 / 64
    for policy in (
        Uniform(),
        Zipf(exponent=0.0),
        Lognormal(sigma=0.0),
        Lognormal(sigma=0.0, affinity=0.5),
    ):
        router = policy.prepare(moe, 1, np.random.default_rng(0))
        topk_ids_TK = router.topk_ids(0, np.array([num_tokens]), np.random.default_rng(1))
        count_E = np.bincount(topk_ids_TK.ravel(), minlength=64)
        assert np.abs(count_E - expected).max() < 5 * np.sqrt(expected * (1 - 6 / 64)), policy


@quick
@given(loads=loads(), spare=st.integers(0, 3))
def test_eplb_holds_every_expert_in_equally_many_slots_a_rank(loads, spare):
    load_LE, num_ranks = loads
    num_experts = load_LE.shape[1]
    num_slots = -(-num_experts // num_ranks) * num_ranks + spare * num_ranks
    placed = Eplb(num_slots=num_slots).place(load_LE, num_ranks, np.random.default_rng(0))
    for expert_P, rank_P in zip(placed.expert_LP, placed.rank_LP, strict=True):
        assert np.bincount(expert_P, minlength=num_experts).min() >= 1
        assert (
            np.bincount(rank_P, minlength=num_ranks).tolist()
            == [num_slots // num_ranks] * num_ranks
        )


@quick
@given(loads=loads())
def test_greedy_is_never_worse_than_contiguous_on_the_load_it_was_given(loads):
    load_LE, num_ranks = loads
    busiest = [
        [
            np.bincount(rank_P, weights=load_E[expert_P], minlength=num_ranks).max()
            for load_E, expert_P, rank_P in zip(
                load_LE, placed.expert_LP, placed.rank_LP, strict=True
            )
        ]
        for placed in (
            policy.place(load_LE, num_ranks, np.random.default_rng(0))
            for policy in (Greedy(), Contiguous())
        )
    ]
    assert (np.array(busiest[0]) <= np.array(busiest[1]) + 1e-9).all()
