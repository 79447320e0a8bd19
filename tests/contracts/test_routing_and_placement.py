"""Every file of `simulator/policies/routing` and `simulator/policies/placement` keeps its family's
promises. Kinds are discovered, never listed.

A policy is built with its fields' defaults; a field without one takes the first of its `examples`,
or, if it is called `trace`, a recording made here.
"""

import numpy as np
import pytest

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.config.ffns.moe import MoE
from simulator.policies.placement import PairPlacement

NUM_LAYERS = 3
ROUTING = plugins.available("routing")
PLACEMENT = plugins.available("placement")


def moe(num_experts, top_k, **groups):
    return MoE(kind="moe", num_experts=num_experts, top_k=top_k, intermediate_size=1, **groups)


SHAPES = [
    pytest.param(moe(64, 1), id="top-1"),
    pytest.param(moe(64, 4), id="top-4"),
    pytest.param(moe(64, 8), id="top-8"),
    pytest.param(moe(8, 8), id="every expert"),
    pytest.param(moe(1, 1), id="one expert"),
    pytest.param(moe(64, 8, num_groups=8, num_limited_groups=4), id="groups"),
    pytest.param(moe(16, 2, num_groups=16, num_limited_groups=3), id="groups of one expert"),
]


def example(family, kind, trace):
    fields = {}
    for name, field in plugins.policy_class(family, kind, "test").model_fields.items():
        if not field.is_required():
            continue
        said = [str(trace)] if name == "trace" else field.examples
        assert said, f"{family} kind '{kind}': give its field {name} `examples`"
        fields[name] = said[0]
    return plugins.build(family, {"kind": kind, **fields}, "test")


def prepared(kind, shape, tmp_path):
    trace = tmp_path / "recording.npz"
    rng = np.random.default_rng(3)
    scores_LTE = rng.random((NUM_LAYERS, 200, shape.num_experts))
    np.savez(
        trace,
        ids=scores_LTE.argsort(axis=2)[:, :, : shape.top_k],
        seq_lens=[50, 150],
        num_experts=shape.num_experts,
    )
    try:
        return example("routing", kind, trace).prepare(shape, NUM_LAYERS, np.random.default_rng(0))
    except UserError:
        assert shape.num_experts != 64, "a policy may refuse an odd shape, not an ordinary one"
        return None


@pytest.mark.parametrize("kind", ROUTING)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_gets_k_distinct_experts_that_exist(kind, shape, tmp_path):
    router = prepared(kind, shape, tmp_path)
    if router is None:
        return
    for layer, run_lengths in enumerate([[1] * 40, [300, 0, 7], [5000]]):
        topk_ids_TK = router.topk_ids(
            layer, np.array(run_lengths, dtype=np.int64), np.random.default_rng(layer)
        )
        assert topk_ids_TK.dtype == np.int16
        assert topk_ids_TK.shape == (sum(run_lengths), shape.top_k)
        assert topk_ids_TK.min() >= 0
        assert topk_ids_TK.max() < shape.num_experts
        sorted_TK = np.sort(topk_ids_TK, axis=1)
        assert (np.diff(sorted_TK, axis=1) > 0).all()


@pytest.mark.parametrize("kind", ROUTING)
@pytest.mark.parametrize("run_lengths", [[], [0], [0, 0]])
def test_no_tokens_give_no_ids(kind, run_lengths, tmp_path):
    router = prepared(kind, moe(64, 4), tmp_path)
    topk_ids_TK = router.topk_ids(
        0, np.array(run_lengths, dtype=np.int64), np.random.default_rng(0)
    )
    assert topk_ids_TK.shape == (0, 4)
    assert topk_ids_TK.dtype == np.int16


@pytest.mark.parametrize("kind", ROUTING)
def test_the_same_stream_gives_the_same_ids_and_another_gives_others(kind, tmp_path):
    run_lengths = np.array([30, 1, 1, 90], dtype=np.int64)
    first, second = (prepared(kind, moe(64, 4), tmp_path) for _ in range(2))
    ids = first.topk_ids(1, run_lengths, np.random.default_rng(5))
    assert np.array_equal(ids, second.topk_ids(1, run_lengths, np.random.default_rng(5)))
    assert not np.array_equal(ids, first.topk_ids(1, run_lengths, np.random.default_rng(6)))


def place(policy, load_LE, num_ranks):
    """Place experts, with pairs that tokens choose together where a policy looks at them."""
    rng = np.random.default_rng(0)
    if not isinstance(policy, PairPlacement):
        return policy.place(load_LE, num_ranks, rng)
    half_LEE = np.random.default_rng(2).exponential(size=(*load_LE.shape, load_LE.shape[1]))
    return policy.place_pairs(load_LE, half_LEE + half_LEE.transpose(0, 2, 1), num_ranks, rng)


@pytest.mark.parametrize("kind", PLACEMENT)
@pytest.mark.parametrize(
    ("num_experts", "num_ranks"), [(64, 8), (10, 4), (7, 7), (9, 1), (256, 32)]
)
def test_every_expert_has_a_slot_and_ranks_are_as_even_as_can_be(
    kind, num_experts, num_ranks, tmp_path
):
    load_LE = np.random.default_rng(1).exponential(size=(NUM_LAYERS, num_experts))
    policy = example("placement", kind, tmp_path)
    placed = place(policy, load_LE, num_ranks)
    assert placed.num_ranks == num_ranks
    assert placed.expert_LP.shape == placed.rank_LP.shape
    assert placed.expert_LP.dtype == placed.rank_LP.dtype == np.int64
    for expert_P, rank_P in zip(placed.expert_LP, placed.rank_LP, strict=True):
        assert set(expert_P.tolist()) == set(range(num_experts))
        slots_R = np.bincount(rank_P, minlength=num_ranks)
        assert len(slots_R) == num_ranks
        assert slots_R.max() - slots_R.min() <= 1
    again = place(policy, load_LE, num_ranks)
    assert np.array_equal(placed.expert_LP, again.expert_LP)
    assert np.array_equal(placed.rank_LP, again.rank_LP)
