"""Shards in threads of one process against the whole model: the same hidden vectors, and nothing
lost or doubled on the way.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.model import ModelSpec
from simulator.config.sparsity import Block, TwoFour, Unstructured
from simulator.policies.overflow.capacity import Capacity
from simulator.policies.overflow.none import Dropless
from simulator.policies.placement import Placed
from simulator.runtime.job import Job, RoutedExperts, Step
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.reference import Reference
from simulator.work.layout import Layout
from tests.cases import cases
from tests.parts import change_plan
from tests.runtime.equality import (
    BF16,
    FP32,
    STEPS,
    by_its_router,
    check,
    check_job,
    prompts,
    replicated,
    running,
    with_noise,
    with_placed,
)

MOE = {"num_experts": 8, "top_k": 2}
SHARED = {"num_shared_experts": 1, "shared_intermediate_size": 24}


CHOICES = {
    "as planned": lambda top_k, rng: None,
    "all to the same experts": lambda top_k, rng: [list(range(3, 3 + top_k))],
    "half of the experts empty": lambda top_k, rng: [
        rng.permutation(4)[:top_k] * 2 for _ in range(64)
    ],
    "all to experts of one rank": lambda top_k, rng: [
        rng.permutation(2)[:top_k] for _ in range(64)
    ],
}


@pytest.mark.parametrize("placement", [*plugins.available("placement"), "replicated"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_experts_on_any_number_of_ranks_in_any_placement_equal_the_whole_model(
    real, ranks, placement
):
    rng = np.random.default_rng(ranks)
    kind = "contiguous" if placement == "replicated" else placement
    skewed = {"kind": "zipf", "exponent": 1.2}
    plan = real.plan(
        MOE,
        attention_dp=ranks,
        ep=ranks,
        placement={"kind": kind},
        routing=skewed,
        dispatch={"kind": "per_rank"},
    )
    if placement == "replicated":
        plan = with_placed(plan, replicated(plan.placement.experts.placed, 8, 5, rng))
        slots_R = np.bincount(plan.placement.experts.placed.rank_LP[0], minlength=ranks)
        assert ranks == 1 or len(set(slots_R)) > 1
    with running(real.job(plan)) as (backend, _):
        for choices in CHOICES.values():
            ids_TK = choices(2, rng)
            job = real.job(plan if ids_TK is None else real.with_choices(plan, ids_TK))
            backend.load(job)
            check(job, backend, Reference(job))


KINDS = {
    "plain": {},
    "not gated": {"is_gated": False},
    "shared expert": SHARED,
    "shared expert with a gate": {**SHARED, "has_shared_gate": True},
    "expert biases": {"has_expert_bias": True},
    "router bias": {"has_router_bias": True},
    "sigmoid": {"scoring": "sigmoid"},
    "sigmoid, bias and groups": {
        "scoring": "sigmoid",
        "has_router_bias": True,
        "num_groups": 4,
        "num_limited_groups": 2,
    },
    "square root of softplus": {"scoring": "sqrtsoftplus", "has_router_bias": True},
    "everything": {
        **SHARED,
        "has_shared_gate": True,
        "has_expert_bias": True,
        "has_router_bias": True,
        "is_gated": False,
    },
}
SPLITS = {
    "ep 3": {"attention_dp": 3, "ep": 3},
    "ep 4": {"attention_dp": 4, "ep": 4},
    "ep 2 of dp 4": {"attention_dp": 4, "ep": 2},
    "ep 1 of dp 3": {"attention_dp": 3, "ep": 1},
    "tp 2, ep 1": {"tp": 2, "ep": 1},
    "tp 2, ep 2": {"tp": 2, "ep": 2},
    "tp 4, ep 1": {"tp": 4, "ep": 1},
    "tp 4, ep 2": {"tp": 4, "ep": 2},
    "tp 4, ep 4": {"tp": 4, "ep": 4},
}


WITH_ALL_KINDS = ("ep 3", "ep 2 of dp 4", "tp 4, ep 2")
CASES = [
    (kind, split)
    for kind in KINDS
    for split in SPLITS
    if kind == "everything" or split in WITH_ALL_KINDS
]


@pytest.mark.parametrize(("kind", "split"), CASES)
def test_every_kind_of_layer_split_in_every_way_equals_the_whole_model(real, kind, split):
    job = with_noise(real.job(real.plan({**MOE, **KINDS[kind]}, **SPLITS[split])), real.folder)
    chosen_by_router = by_its_router(job)
    with running(job) as (backend, _):
        check(job, backend, Reference(job), STEPS[:2])
        backend.load(chosen_by_router)
        check(chosen_by_router, backend, Reference(chosen_by_router), STEPS[2:])


@pytest.mark.parametrize("split", ["ep 3", "ep 4", "ep 2 of dp 4", "ep 1 of dp 3"])
@pytest.mark.parametrize("dispatch", plugins.available("dispatch"))
def test_every_dispatch_policy_sends_what_the_simulator_counts_on_one_node_and_on_two(
    real, dispatch, split
):
    keys = SPLITS[split]
    plan = real.plan({**MOE, "top_k": 3}, dispatch={"kind": dispatch}, **keys)
    plan = with_placed(
        plan, replicated(plan.placement.experts.placed, 8, 3, np.random.default_rng(0))
    )
    job = real.job(plan)
    check_job(job)
    two = dataclasses.replace(job, node_R=np.arange(keys["attention_dp"]) // 2)
    if _is_executed(two):
        check_job(two)
    else:  # only what forwards inside nodes may be refused, and it sends less between them than what does not
        with pytest.raises(UserError, match="forwards"):
            real.job(
                change_plan(
                    plan, fabric=dataclasses.replace(plan.placement.fabric, node_R=two.node_R)
                )
            )


def _is_executed(job):
    try:
        job.experts.dispatch.rows(np.zeros((0, 1), dtype=np.int64), job.node_R)
    except UserError:
        return False
    return True


DENSE = {
    "plain": {},
    "biases": {"has_bias": True},
    "not gated": {"is_gated": False, "has_bias": True},
}


@pytest.mark.parametrize("split", [{}, {"attention_dp": 3}, {"tp": 2}, {"tp": 4}], ids=str)
@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_model_split_in_every_way_equals_the_whole_model(real, kind, split):
    check_job(with_noise(real.job(real.plan(DENSE[kind], **split)), real.folder))


PRUNING = {
    "unstructured": Unstructured(kind="unstructured", sparsity=0.6),
    "blocks": Block(kind="block", sparsity=0.5, block_size=8),
    "two of four": TwoFour(kind="two_four"),
}


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("pruning", PRUNING)
def test_a_pruned_dense_model_equals_the_whole_pruned_model(real, pruning, tp):
    pruned = dataclasses.replace(
        real.job(real.plan({"has_bias": True}, tp=tp)), pruning=PRUNING[pruning]
    )
    check_job(with_noise(pruned, real.folder))
    whole = Reference(dataclasses.replace(pruned, pruning=None)).hidden_vectors(prompts())
    assert np.abs(Reference(pruned).hidden_vectors(prompts()) - whole).max() > 100 * FP32


@pytest.mark.parametrize(
    ("model", "split"),
    [(MOE | SHARED, "ep 4"), (MOE, "ep 2 of dp 4"), (MOE, "tp 4, ep 2"), ({}, None)],
)
def test_half_precision_equals_the_whole_model_less_closely(real, model, split):
    keys = {"weight_dtype": "bf16", "dispatch_dtype": "bf16", "combine_dtype": "bf16"}
    check_job(
        real.job(real.plan(model, **(SPLITS[split] if split else {"tp": 2}), **keys)),
        tolerance=BF16,
    )


def test_tokens_may_travel_in_a_narrower_format_than_they_are_computed_in(real):
    job = real.job(
        real.plan(MOE, attention_dp=4, ep=4, dispatch_dtype="bf16", combine_dtype="bf16")
    )
    check_job(job, tolerance=BF16)
    with pytest.raises(AssertionError):
        check_job(job)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_parameters_of_all_ranks_are_the_models_with_what_every_rank_has_counted_on_each(
    real, kind, split
):
    job = real.job(real.plan({**MOE, **KINDS[kind]}, **SPLITS[split]))
    with running(job) as (_, parameters_R):
        whole = Transformer(job.model, None)
        experts = sum(p.numel() for name, p in whole.named_parameters() if ".experts." in name)
        on_each = job.layout.num_ranks * (_count(whole) - experts)
        if job.layout.tp > 1:  # tensor parallelism splits all but these
            on_every_rank = (
                "embedding",
                "norm.weight",
                "router.weight",
                "router.bias",
                "shared.gate",
            )
            common = sum(
                p.numel() for name, p in whole.named_parameters() if name.endswith(on_every_rank)
            )
            on_each = job.layout.tp * common + _count(whole) - experts - common
        assert sum(parameters_R) == on_each + experts


def test_a_copy_of_an_expert_costs_its_parameters_once_more(real):
    plan = real.plan(MOE, attention_dp=4, ep=4)
    more = with_placed(
        plan, replicated(plan.placement.experts.placed, 8, 3, np.random.default_rng(0))
    )
    with running(real.job(plan)) as (_, once_R), running(real.job(more)) as (_, parameters_R):
        copies = (
            more.placement.experts.placed.expert_LP.size
            - plan.placement.experts.placed.expert_LP.size
        )
        assert sum(parameters_R) - sum(
            once_R
        ) == copies * plan.placement.model.moe.num_expert_parameters(
            plan.placement.model.hidden_size
        )


def _count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@st.composite
def jobs(draw):
    """Any small job: ranks without experts or with copies of all, models of any width, choices of
    any kind.
    """
    num_experts = draw(st.integers(1, 9))
    top_k = draw(st.integers(1, num_experts))
    tp, attention_dp, ep = draw(
        st.sampled_from(
            [(1, 1, 1), (1, 2, 2), (1, 2, 1), (1, 3, 3), (1, 4, 2), (1, 5, 5), (2, 1, 2), (2, 1, 1)]
        )
    )
    layers = draw(st.integers(1, 2))
    moe = {
        "kind": "moe",
        "num_experts": num_experts,
        "top_k": top_k,
        "intermediate_size": draw(st.integers(2, 9)),
        "is_gated": draw(st.booleans()),
        **draw(st.sampled_from([{}, {"num_shared_experts": 1, "shared_intermediate_size": 5}])),
    }
    attention = {
        "kind": "gqa",
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 4,
        "window": draw(st.sampled_from([None, 3])),
    }
    model = {
        "name": "any",
        "hidden_size": draw(st.integers(2, 12)),
        "vocab_size": 16,
        "layers": [{"repeat": layers, "pattern": [["full", "ffn"]]}],
        "mixers": {"full": attention},
        "ffns": {"ffn": moe},
        "ties_embeddings": draw(st.booleans()),
    }
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    extra = draw(st.integers(0, 6))
    expert_LP = np.array(
        [
            rng.permutation([*range(num_experts), *rng.integers(0, num_experts, extra)])
            for _ in range(layers)
        ]
    )
    placed = Placed(expert_LP, rng.integers(0, ep, expert_LP.shape), ep)
    ids_LTK = rng.random((layers, 4096, num_experts)).argsort(axis=2)[..., :top_k].astype(np.int16)
    dispatch = plugins.build(
        "dispatch", {"kind": draw(st.sampled_from(plugins.available("dispatch")))}, "test"
    )
    job = Job(
        name="any",
        model=validate(ModelSpec, model, "test"),
        layout=Layout(tp, attention_dp, ep),
        node_R=np.arange(tp * attention_dp) // 2,
        dtype="fp32",
        dispatch_dtype="fp32",
        combine_dtype="fp32",
        experts=RoutedExperts(
            draw(st.sampled_from([ids_LTK, None])),
            placed,
            dispatch,
            draw(st.sampled_from([Dropless(), Capacity(factor=0.5), Capacity(factor=1.0)])),
        ),
        pruning=None,
        seed=draw(st.integers(0, 100)),
        weights=None,
    )
    return job if _is_executed(job) else dataclasses.replace(job, node_R=np.zeros_like(job.node_R))


a_step = st.builds(
    Step,
    number=st.integers(0, 50),
    num_sequences=st.integers(1, 9),
    new_tokens=st.integers(1, 4),
    context_tokens=st.integers(0, 4),
    offset=st.integers(0, 9000),
    keeps_output=st.just(True),
)


@cases(50, soak=1000)
@given(jobs(), st.lists(a_step, min_size=1, max_size=2))
def test_any_small_job_equals_the_whole_model(job, steps):
    check_job(job, steps, tolerance=10 * FP32)
