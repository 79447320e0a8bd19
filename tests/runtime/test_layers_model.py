"""A whole model against its blocks in order, from its caches and with given experts."""

import pytest
import torch

from simulator.config.model import ModelSpec
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.mixers.gqa import Cache
from simulator.runtime.layers.transformer import Transformer
from tests.runtime.layers_by_loops import (
    HIDDEN,
    Noise,
    gqa,
    moe_of,
    same,
    slow_attention,
    slow_ffn,
    slow_moe,
)

pytestmark = pytest.mark.usefixtures("no_gradients")

MODEL = ModelSpec.model_validate(
    {
        "name": "small",
        "hidden_size": HIDDEN,
        "vocab_size": 50,
        "mixers": {
            "full": gqa(has_qkv_bias=True).model_dump(),
            "sliding": gqa(window=3).model_dump(),
        },
        "ffns": {
            "dense": {"kind": "dense", "intermediate_size": 20},
            "moe": moe_of(
                num_shared_experts=1, shared_intermediate_size=8, has_router_bias=True
            ).model_dump(),
        },
        "layers": [
            {"pattern": [["full", "dense"]]},
            {"repeat": 2, "pattern": [["sliding", "moe"], ["none", "moe"], ["full", "none"]]},
        ],
    }
)
NUM_SEQUENCES, LENGTH = 2, 7


def slow_transformer(noise, ids_SL):
    """Normed hidden vectors ``[S * L, H]`` and the cache of each mixer."""

    def normed(x_SLH, name):
        return x_SLH / (x_SLH.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * noise[name]

    x_SLH, caches = noise["embedding"][ids_SL], []
    for layer, (mixer, ffn) in enumerate(MODEL.layer_names):
        name = f"layers.{layer}"
        if mixer != "none":
            result, cache = slow_attention(
                noise, f"{name}.mixer", normed(x_SLH, f"{name}.mixer_norm"), MODEL.mixers[mixer]
            )
            x_SLH = x_SLH + result
            caches.append(cache)
        if ffn != "none":
            rows = normed(x_SLH, f"{name}.ffn_norm").flatten(0, 1)
            block = MODEL.ffns[ffn]
            if block.experts is not None:
                results = [slow_moe(noise, f"{name}.ffn", x_H, block) for x_H in rows]
            else:
                results = [slow_ffn(noise, f"{name}.ffn", x_H, block.is_gated) for x_H in rows]
            x_SLH = x_SLH + torch.stack(results).view_as(x_SLH)
    return normed(x_SLH, "norm"), caches


def test_a_whole_model_is_its_blocks_in_order_and_goes_on_from_its_caches():
    noise = Noise()
    model = Transformer(MODEL)
    model.load(noise)
    ids_SL = torch.arange(NUM_SEQUENCES * LENGTH).view(NUM_SEQUENCES, LENGTH) * 17 % 50
    expected, caches = slow_transformer(noise, ids_SL)
    whole, used_LTK = model(ids_SL.flatten(), Chunk(NUM_SEQUENCES, LENGTH, 0))
    assert used_LTK.shape == (MODEL.num_moe_layers, NUM_SEQUENCES * LENGTH, 2)
    same(whole, expected.flatten(0, 1))
    same(model.logits(whole), (expected @ noise["head"].T).flatten(0, 1))
    used = used_LTK.unflatten(1, (NUM_SEQUENCES, LENGTH))
    for context in range(1, LENGTH):
        held = [Cache(cache.keys[:, :, :context], cache.values[:, :, :context]) for cache in caches]
        found, ids_LTK = model(
            ids_SL[:, context:].flatten(), Chunk(NUM_SEQUENCES, LENGTH - context, context), held
        )
        same(found, expected[:, context:].flatten(0, 1))
        assert torch.equal(ids_LTK, used[:, :, context:].flatten(1, 2))
        decoded, _ = model(ids_SL[:, context], Chunk(NUM_SEQUENCES, 1, context), held)
        same(decoded, expected[:, context])


def test_given_experts_replace_the_routers_choice_layer_by_layer():
    model = Transformer(MODEL)
    model.load(Noise())
    tokens, chunk = torch.arange(6), Chunk(2, 3, 0)
    free, used_LTK = model(tokens, chunk)
    again, same_LTK = model(tokens, chunk, ids_LTJ=used_LTK)
    assert torch.equal(free, again)
    assert torch.equal(used_LTK, same_LTK)
    other_LTK = (used_LTK + 1) % 8
    moved, replayed_LTK = model(tokens, chunk, ids_LTJ=other_LTK)
    assert torch.equal(replayed_LTK, other_LTK)
    assert not torch.allclose(free, moved)
