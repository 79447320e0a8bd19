"""Natural sparsity and the work of a decode step, against counts by hand and each other."""

from itertools import pairwise

import numpy as np
import pytest

from simulator.base.data import available_files
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.model import load_model
from simulator.work.flops import WHOLE, count_decode_step, release_precision, used_expert_share
from simulator.work.memory import weight_bytes
from simulator.work.sparsity import count_idle

MODELS = {name: load_model(name, "test") for name in available_files("workloads/models")}


@pytest.mark.parametrize("name", MODELS)
def test_idle_shares_lie_between_none_and_all_and_fall_with_the_batch(name):
    model = MODELS[name]
    shares = [count_idle(model, tokens) for tokens in (1, 2, 8, 64, 4096)]
    for one, more in pairwise(shares):
        assert 0 <= more.weights <= one.weights < 1
        assert 0 <= more.read <= one.read < 1
        assert one.compute == more.compute < 1
    assert (shares[0].compute > 0) == (model.moe is not None)
    assert shares[-1].read == pytest.approx(0.0, abs=1e-6) or model.moe.num_experts > 64


def test_mixtral_by_hand():
    """6 of 8 experts of 3 x 4096 x 14336 weights in 32 layers are idle for one token."""
    model = MODELS["mixtral-8x7b"]
    idle = 32 * 6 * 3 * 4096 * 14336
    shares = count_idle(model, 1)
    assert shares.weights == pytest.approx(idle / model.num_parameters)
    without_table = model.num_parameters - model.num_embedding_parameters
    assert shares.read == pytest.approx(idle / without_table, rel=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_a_large_batch_reads_all_weights_that_are_stored(name):
    model = MODELS[name]
    stored = weight_bytes(model, WHOLE, release_precision(model))
    table = 0 if model.ties_embeddings else model.num_embedding_parameters
    read = count_decode_step(model, 100_000, 1).weight_bytes
    assert read == pytest.approx(stored - table * BYTES_PER_ELEMENT["bf16"], rel=1e-6)


def test_used_experts_are_those_of_uniform_draws():
    rng = np.random.default_rng(1)
    used = [len(set(np.argsort(rng.random((20, 64)))[:, :8].ravel())) / 64 for _ in range(400)]
    assert np.mean(used) == pytest.approx(used_expert_share(64, 8, 20), rel=0.01)
