"""Experts that are pruned for real, and the bytes of PyTorch's sparse tensors."""

import dataclasses

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.config.sparsity import Block, TwoFour, Unstructured
from simulator.runtime.job import make_job
from simulator.runtime.layers.pruned import PrunedMatrix
from simulator.runtime.reference import Reference
from tests.runtime.equality import FP32, check_job, prompts, with_noise

pytestmark = pytest.mark.usefixtures("no_gradients")

EXPERTS = {"blocks": "experts"}
PRUNINGS = {
    "unstructured": Unstructured(kind="unstructured", sparsity=0.6, **EXPERTS),
    "blocks": Block(kind="block", sparsity=0.5, block_size=4, **EXPERTS),
    "two of four": TwoFour(kind="two_four", **EXPERTS),
}
MOE = {"num_experts": 8, "top_k": 2, "has_expert_bias": True}
SPLITS = {"whole": {}, "travelling": {"attention_dp": 2, "ep": 2}, "split": {"tp": 2, "ep": 1}}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", PRUNINGS)
def test_a_mixture_of_pruned_experts_equals_the_whole_pruned_model(real, name, split):
    job = real.job(real.plan(MOE, **SPLITS[split]))
    pruned = dataclasses.replace(job, pruning=PRUNINGS[name])
    check_job(with_noise(pruned, real.folder))
    whole = Reference(dataclasses.replace(pruned, pruning=None)).hidden_vectors(prompts())
    assert np.abs(Reference(pruned).hidden_vectors(prompts()) - whole).max() > 100 * FP32


@pytest.mark.parametrize("kind", ["merge", "prune"])
@pytest.mark.parametrize("split", SPLITS)
def test_fewer_experts_are_executed_as_they_are_simulated(real, kind, split):
    plan = real.plan(MOE, **SPLITS[split], reduction={"kind": kind, "num_experts": 6, "top_k": 1})
    job = real.job(plan)
    assert (job.moe.num_experts, job.moe.top_k) == (6, 1)
    check_job(with_noise(job, real.folder))


@pytest.mark.parametrize("name", PRUNINGS)
def test_every_expert_keeps_what_the_spec_counts(real, name):
    pruning = PRUNINGS[name]
    job = dataclasses.replace(real.job(real.plan(MOE)), pruning=pruning)
    held = [one for one in Reference(job).model.modules() if isinstance(one, PrunedMatrix)]
    linears, layers = job.moe.expert_linears(job.model.hidden_size), job.model.num_moe_layers
    per_expert = sum(pruning.num_stored(one.out_features, one.in_features) for one in linears)
    assert len(held) == 2 * 8 * layers
    assert sum(one.num_stored for one in held) == 8 * layers * per_expert


def test_pruned_experts_that_move_are_refused(real):
    rebalancing = {"kind": "periodic", "every_s": 1.0}
    plan = real.plan(MOE, attention_dp=2, ep=2, rebalancing=rebalancing)
    spec = plan.spec.model_copy(update={"pruning": PRUNINGS["two of four"]})
    with pytest.raises(UserError, match="pruned experts that move"):
        make_job(dataclasses.replace(plan, spec=spec), real.folder)
