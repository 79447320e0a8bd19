"""Experts that move between shards while they run: every weight arrives, outputs stay equal to the
whole model, and as many bytes travel as the simulator prices.
"""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs pip install 'moesim[real]'")

from simulator.engine.rebalancing import price_move
from simulator.policies.placement import Placed
from simulator.policies.rebalancing import ExpertLoad
from simulator.runtime.reference import Reference
from simulator.work.expert_moves import count_expert_moves
from tests.cases import seeds
from tests.runtime.equality import (
    STEPS,
    check,
    check_step,
    decode,
    replicated,
    running,
    with_noise,
    with_placed,
)

pytestmark = pytest.mark.usefixtures("one_thread")
MOE = {"num_experts": 8, "top_k": 2, "has_expert_bias": True, "has_router_bias": True}
LAYOUTS = {
    "experts whole": {"attention_dp": 4, "ep": 4},
    "experts split, a part with a bias of its own": {"attention_dp": 4, "ep": 2},
}


def plan_of(real, **keys):
    plan = real.plan(MOE, dispatch={"kind": "per_rank"}, **keys)
    copies = replicated(plan.placement.experts.placed, 8, 4, np.random.default_rng(0))
    return with_placed(plan, copies)


def shuffled(placed, rng):
    """Any placement of all experts in the same slots."""
    layers = []
    for expert_P in placed.expert_LP:
        extra = len(expert_P) - 8
        layers.append(rng.permutation(np.concatenate([np.arange(8), rng.integers(0, 8, extra)])))
    return Placed(np.stack(layers), placed.rank_LP, placed.num_ranks)


def moved(job, placed):
    return dataclasses.replace(job, experts=dataclasses.replace(job.experts, placed=placed))


@pytest.fixture(params=LAYOUTS)
def plan(request, real):
    return plan_of(real, **LAYOUTS[request.param])


def test_outputs_equal_the_whole_model_before_between_and_behind_moves(plan, real):
    job = with_noise(real.job(plan), real.folder)
    reference, rng = Reference(job), np.random.default_rng(1)
    with running(job) as (backend, _):
        check(job, backend, reference)
        for number in range(3):
            job = moved(job, shuffled(job.experts.placed, rng))
            backend.place_experts(job.experts.placed, 0)
            check(job, backend, reference, STEPS[number:])


@seeds(0, 12)
def test_moved_shards_have_the_bits_of_shards_that_were_loaded_there(real, seed):
    plan, rng = plan_of(real, attention_dp=4, ep=4), np.random.default_rng(seed)
    before = with_noise(real.job(plan), real.folder)
    after = moved(before, shuffled(before.experts.placed, rng))
    with running(before) as (backend, _), running(after) as (loaded, _):
        backend.place_experts(after.experts.placed, 0)
        for one, other in zip(backend.shards, loaded.shards, strict=True):
            mine, theirs = one._model.state_dict(), other._model.state_dict()
            assert mine.keys() == theirs.keys()
            assert all((mine[name] == theirs[name]).all() for name in mine)
        step = decode()
        for one, other in zip(backend.step(step), loaded.step(step), strict=True):
            assert np.array_equal(one.hidden_TH, other.hidden_TH)


def test_as_many_bytes_travel_as_the_simulator_prices(real):
    plan = real.plan({"num_experts": 8, "top_k": 2}, attention_dp=4, ep=4)
    placed = plan.placement.experts.placed
    after = shuffled(placed, np.random.default_rng(3))
    load = ExpertLoad(0.0, 1, np.ones((2, 8)), placed)
    priced = price_move(plan.placement, after, load, "both", 0.0)
    moves_SR = count_expert_moves(placed, after, plan.placement.node_of_ep_rank)
    with running(real.job(plan)) as (backend, _):
        got = backend.place_experts(after, 0)
    assert [one.num_experts for one in got] == moves_SR.sum(axis=0).tolist()
    assert sum(one.num_experts for one in got) == priced.num_experts > 0
    assert sum(one.num_bytes for one in got) == priced.num_bytes
    assert all(one.num_experts == 0 for one in _stay(real.job(plan)))


def _stay(job):
    with running(job) as (backend, _):
        return backend.place_experts(job.experts.placed, 0)


def test_ranks_count_the_tokens_that_each_expert_computed(plan, real):
    job = real.job(plan)
    with running(job) as (backend, _):
        for step in STEPS:
            outs = backend.step(step)
            check_step(job, step, outs, Reference(job))
            load_LE = sum(out.load_LE for out in outs)
            for layer in range(job.model.num_moe_layers):
                ids_TK = job.ids_TJ(layer, step.offset, step.num_tokens)
                assert np.array_equal(load_LE[layer], np.bincount(ids_TK.ravel(), minlength=8))
