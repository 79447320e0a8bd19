"""Experts that move between shards while they run: every weight arrives, outputs stay equal to the
whole model, and as many bytes travel as the simulator prices.
"""

import dataclasses

import numpy as np
import pytest

from simulator.policies.placement import Placed
from simulator.runtime.reference import Reference
from tests.cases import seeds
from tests.runtime.equality import (
    STEPS,
    check_step,
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


@pytest.mark.parametrize("layout", LAYOUTS)
@seeds(0, 12)
def test_moved_shards_have_the_bits_of_shards_that_were_loaded_there(real, seed, layout):
    """And outputs of the whole model, of which ranks count each token of each expert once."""
    plan, rng = plan_of(real, **LAYOUTS[layout]), np.random.default_rng(seed)
    before = with_noise(real.job(plan), real.folder)
    after = moved(before, shuffled(before.experts.placed, rng))
    reference = Reference(after)
    with running(before) as (backend, _), running(after) as (loaded, _):
        backend.place_experts(after.experts.placed, 0)
        for one, other in zip(backend.shards, loaded.shards, strict=True):
            mine, theirs = one._model.state_dict(), other._model.state_dict()
            assert mine.keys() == theirs.keys()
            assert all((mine[name] == theirs[name]).all() for name in mine)
        for step in STEPS:
            outs = backend.step(step)
            check_step(after, step, outs, reference)
            for one, other in zip(outs, loaded.step(step), strict=True):
                assert np.array_equal(one.hidden_TH, other.hidden_TH)
            load_LE = sum(out.load_LE for out in outs)
            for layer in range(after.model.num_moe_layers):
                ids_TK = after.ids_TJ(layer, step.offset, step.num_tokens)
                assert np.array_equal(load_LE[layer], np.bincount(ids_TK.ravel(), minlength=8))
        assert all(one.num_bytes == 0 for one in backend.place_experts(after.experts.placed, 1))
