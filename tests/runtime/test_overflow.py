"""Shards drop what experts have no room for: the same pairs as the whole model, and as prices."""

import dataclasses
import itertools

import numpy as np
import pytest

from simulator.policies.overflow.none import Dropless
from simulator.runtime.reference import Reference
from simulator.step.prices import Prices
from tests.runtime.equality import STEPS, by_its_router, check_job, check_step, prompts, running

MOE = {"num_experts": 8, "top_k": 2}
SHARED = {"num_shared_experts": 1, "shared_intermediate_size": 24}
SPLITS = [
    {"attention_dp": 2, "ep": 2},
    {"attention_dp": 4, "ep": 2},
    {"attention_dp": 3, "ep": 3},
    {"tp": 2, "ep": 2},
    {"tp": 4},
]


FURTHER = [
    {"kind": "capacity", "factor": 0.8, "per": "rank"},
    {"kind": "capacity", "factor": 1.0, "next_choices": 3},
    {"kind": "capacity", "factor": 0.7, "per": "rank", "next_choices": 99},
    {"kind": "top_k", "top_k": 1, "above_tokens": 3},
]
FACTORS = [{"kind": "capacity", "factor": factor} for factor in (0.3, 1.0)]
KINDS = ("per_rank", "per_expert", "all_gather")


@pytest.mark.parametrize(
    ("split", "overflow", "kind"),
    [
        *itertools.product(SPLITS, FACTORS, KINDS),
        *itertools.product((SPLITS[1], SPLITS[3]), FURTHER, KINDS[:1]),
    ],
    ids=str,
)
def test_shards_drop_what_the_whole_model_drops(real, split, overflow, kind):
    plan = real.plan(
        {**MOE, **SHARED},
        routing={"kind": "zipf", "exponent": 1.2},
        dispatch={"kind": kind},
        overflow=overflow,
        **split,
    )
    job = real.job(plan)
    check_job(job, STEPS[:2])
    check_job(by_its_router(job), STEPS[:2])
    step = prompts(sequences=8, tokens=16)
    free = dataclasses.replace(job, experts=dataclasses.replace(job.experts, overflow=Dropless()))
    changed = Reference(job).hidden_vectors(step) - Reference(free).hidden_vectors(step)
    assert np.abs(changed).max() > 0.01  # or it would be no test


COPIES = {
    "placement": {"kind": "biased", "num_slots": 12},
    "overflow": {"kind": "capacity", "factor": 1.2},
}


@pytest.mark.parametrize(
    ("split", "keys"),
    [
        *itertools.product(
            SPLITS[:4],
            [{"overflow": one} for one in ({"kind": "capacity", "factor": 0.7}, *FURTHER[::3])],
        ),
        *itertools.product(
            (SPLITS[1], SPLITS[3]),
            [COPIES | {"replica_choice": {"kind": kind}} for kind in ("nearest", "least_loaded")],
        ),
    ],
    ids=str,
)
def test_shards_compute_the_pairs_that_are_priced(real, split, keys):
    """Where experts have copies, each of the copies that tokens are sent to."""
    plan = real.plan(
        MOE,
        routing={"kind": "zipf", "exponent": 1.2},
        dispatch={"kind": "per_rank"},
        **keys,
        **split,
    )
    job, step = real.job(plan), prompts(sequences=7, tokens=9, offset=4090)
    bounds = [job.sequences(d * job.layout.tp, 7) for d in range(job.layout.attention_dp)]
    tokens_d = np.array([(end - first) * 9 for first, end in bounds])
    with running(job) as (backend, _):
        outs = backend.step(step)
    check_step(job, step, outs, Reference(job))
    prices = Prices(plan.placement, 512)
    for layer in range(plan.placement.model.num_moe_layers):
        priced = prices.expert_step(layer, tokens_d, step.offset)
        assert [out.pairs_L[layer] for out in outs] == priced.pairs_R.tolist()
        assert priced.dropped_pairs > 0 or "placement" in keys
