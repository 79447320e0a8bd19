"""Attention against a loop over queries, whole and in parts, wherever the cache ends."""

import pytest
import torch

from simulator.base.errors import UserError
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.mixers.gqa import Attention, Cache
from simulator.runtime.layers.weights import Part
from tests.runtime.layers_by_loops import HIDDEN, Noise, gqa, inputs, same, slow_attention

pytestmark = pytest.mark.usefixtures("no_gradients")

ATTENTIONS = {
    "every head its own keys": gqa(num_kv_heads=4),
    "groups, biases": gqa(has_qkv_bias=True, has_output_bias=True),
    "one key-value head": gqa(num_kv_heads=1),
    "window of one": gqa(window=1),
    "window of three": gqa(window=3, has_output_bias=True),
    "window of nine": gqa(window=9),
}
CHUNKS = [(1, 0), (1, 1), (1, 8), (1, 9), (5, 0), (10, 0), (4, 3), (9, 1), (2, 8)]


@pytest.mark.parametrize("spec", ATTENTIONS.values(), ids=ATTENTIONS)
@pytest.mark.parametrize(("new", "context"), CHUNKS)
def test_attention_is_a_loop_over_queries_wherever_the_cache_ends_and_its_parts_add_up(
    spec, new, context
):
    noise, x_SLH = Noise(), inputs(2, new + context, HIDDEN)
    Attention(spec, HIDDEN).load(noise, "a")
    expected, cache = slow_attention(noise, "a", x_SLH, spec)
    for size in (size for size in (1, 2, 4) if spec.num_kv_heads % size == 0):
        total = 0
        for rank in range(size):
            layer = Attention(spec, HIDDEN, Part(rank, size))
            layer.load(noise, "a")
            own = (
                Cache(*(part[:, :, :context].chunk(size, dim=1)[rank] for part in cache))
                if context
                else None
            )
            total = total + layer(x_SLH[:, context:].flatten(0, 1), Chunk(2, new, context), own)
        same(total, expected[:, context:].flatten(0, 1))


def test_ranks_that_would_share_a_key_value_head_are_refused():
    with pytest.raises(
        UserError, match="tensor parallelism of 4 must divide the 2 key-value heads"
    ):
        Attention(gqa(), HIDDEN, Part(0, 4))


def test_attention_over_no_sequences_is_empty():
    layer = Attention(gqa(), HIDDEN)
    layer.load(Noise(), "a")
    assert layer(torch.empty(0, HIDDEN), Chunk(0, 1, 7)).shape == (0, HIDDEN)
