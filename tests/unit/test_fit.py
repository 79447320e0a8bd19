"""Memory: weights are a model's parameters, and a request that never fits is refused."""

import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.config.deployment import ParallelSpec
from simulator.config.model import load_model
from simulator.deployment.memory import Capacity, check_requests
from simulator.work.layout import make_layout
from simulator.work.memory import CacheSize, Precision, weight_bytes


def precision(dtype):
    return Precision(dtype, dtype, "bf16", "bf16", "bf16")


@pytest.mark.parametrize("name", sorted(available_files("workloads/models")))
def test_weights_of_any_model_on_one_rank_are_its_parameters(name):
    model = load_model(name, "test")
    layout = make_layout(ParallelSpec(), model, "test")
    assert weight_bytes(model, layout, precision("bf16")) == pytest.approx(
        2.0 * model.num_parameters, rel=1e-3
    )


def capacity_with(cache):
    """A GPU whose million bytes are all of the cache."""
    sizes = {"total_bytes": 1e6, "weights_bytes": 0.0, "reserve_bytes": 0.0, "kv_bytes": 1e6}
    return Capacity(**sizes, cache=cache, block_tokens=16)


def test_the_longest_request_must_fit():
    capacity = capacity_with(CacheSize(1000.0, 16_000.0))
    assert (capacity.num_blocks, capacity.sequence_blocks, capacity.tokens) == (62, 1, 976)
    check_requests(capacity, 976, "here")
    with pytest.raises(UserError, match=r"here: .* has 977 tokens, but the KV cache holds 976"):
        check_requests(capacity, 977, "here")


def test_a_state_without_a_growing_cache_counts_in_bytes():
    capacity = capacity_with(CacheSize(0.0, 300_000.5))
    assert capacity.block_bytes == 1.0
    assert capacity.blocks_for(10) == capacity.blocks_for(10_000_000) == 300_001
    check_requests(capacity, 10_000_000, "here")
