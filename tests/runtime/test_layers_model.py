"""Models of layers of every kind against loops over queries, tokens and experts: whole, from their
caches, and with given experts.
"""

import itertools

import pytest
import torch

from simulator.base.errors import UserError
from simulator.config.model import ModelSpec
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.mixers.gqa import Attention, Cache
from simulator.runtime.layers.router import Router
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import Part
from tests.runtime.layers_by_loops import (
    GROUPED,
    HIDDEN,
    SCORINGS,
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
NUM_SEQUENCES, LENGTH = 2, 11


def alone(**kinds):
    """A model of one layer that has a mixer or a block only."""
    table = {name: {"own": one.model_dump()} for name, one in kinds.items()}
    layer = ["own" if name in kinds else "none" for name in ("mixers", "ffns")]
    return ModelSpec.model_validate(
        {"name": "alone", "hidden_size": HIDDEN, "vocab_size": 50, "mixers": {}, "ffns": {}}
        | table
        | {"layers": [{"pattern": [layer]}]}
    )


ATTENTIONS = {
    "every head its own keys": gqa(num_kv_heads=4),
    "groups, biases": gqa(has_qkv_bias=True, has_output_bias=True),
    "one key-value head": gqa(num_kv_heads=1),
    "window of one": gqa(window=1),
    "window of three": gqa(window=3, has_output_bias=True),
    "window of nine": gqa(window=9),
}
CHOICES = [
    *({"top_k": k} for k in range(1, 9)),
    {"has_router_bias": True},
    GROUPED,
    {**GROUPED, "has_router_bias": True},
    {**GROUPED, "num_groups": 16, "num_limited_groups": 5},
]
MIXTURES = [
    *({**keys, "scoring": scoring} for keys in CHOICES for scoring in SCORINGS),
    {"is_gated": False, "has_expert_bias": True, "has_router_bias": True},
    {"num_shared_experts": 1, "shared_intermediate_size": 12},
    {"num_shared_experts": 2, "shared_intermediate_size": 14, "has_shared_gate": True},
    {"num_experts": 64, "top_k": 2},  # most experts get no token
    {"num_experts": 1, "top_k": 1},
]
MODELS = [
    pytest.param(MODEL, id="layers of every kind"),
    *(pytest.param(alone(mixers=one), id=name) for name, one in ATTENTIONS.items()),
    *(pytest.param(alone(ffns=moe_of(**keys)), id=str(keys)) for keys in MIXTURES),
]


def slow_transformer(spec, noise, ids_SL, given_LTK=None):
    """Normed hidden vectors ``[S * L, H]`` and the cache of each mixer; with the experts of
    tokens, where they are given.
    """

    def normed(x_SLH, name):
        return x_SLH / (x_SLH.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * noise[name]

    x_SLH, caches = noise["embedding"][ids_SL], []
    chosen_L = itertools.repeat(itertools.repeat(None)) if given_LTK is None else iter(given_LTK)
    for layer, (mixer, ffn) in enumerate(spec.layer_names):
        name = f"layers.{layer}"
        if mixer != "none":
            result, cache = slow_attention(
                noise, f"{name}.mixer", normed(x_SLH, f"{name}.mixer_norm"), spec.mixers[mixer]
            )
            x_SLH = x_SLH + result
            caches.append(cache)
        if ffn != "none":
            rows = normed(x_SLH, f"{name}.ffn_norm").flatten(0, 1)
            block = spec.ffns[ffn]
            if block.experts is not None:
                chosen_T = next(chosen_L)
                results = [
                    slow_moe(noise, f"{name}.ffn", x_H, block, chosen)
                    for x_H, chosen in zip(rows, chosen_T, strict=False)
                ]
            else:
                results = [slow_ffn(noise, f"{name}.ffn", x_H, block.is_gated) for x_H in rows]
            x_SLH = x_SLH + torch.stack(results).view_as(x_SLH)
    return normed(x_SLH, "norm"), caches


@pytest.mark.parametrize("spec", MODELS)
def test_a_model_is_its_blocks_in_order_and_goes_on_from_its_caches(spec):
    noise = Noise()
    model = Transformer(spec)
    model.load(noise)
    ids_SL = torch.arange(NUM_SEQUENCES * LENGTH).view(NUM_SEQUENCES, LENGTH) * 17 % 50
    expected, caches = slow_transformer(spec, noise, ids_SL)
    whole, used_LTK = model(ids_SL.flatten(), Chunk(NUM_SEQUENCES, LENGTH, 0))
    top_k = spec.moe.top_k if spec.moe is not None else 0
    assert used_LTK.shape == (spec.num_moe_layers, NUM_SEQUENCES * LENGTH, top_k)
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
    model, noise = Transformer(MODEL), Noise()
    model.load(noise)
    tokens, chunk = torch.arange(6), Chunk(2, 3, 0)
    free, used_LTK = model(tokens, chunk)
    again, same_LTK = model(tokens, chunk, ids_LTJ=used_LTK)
    assert torch.equal(free, again)
    assert torch.equal(used_LTK, same_LTK)
    other_LTK = (used_LTK + 1) % 8
    moved, replayed_LTK = model(tokens, chunk, ids_LTJ=other_LTK)
    assert torch.equal(replayed_LTK, other_LTK)
    assert not torch.allclose(free, moved)
    expected, _ = slow_transformer(MODEL, noise, tokens.view(2, 3), other_LTK.tolist())
    same(moved, expected.flatten(0, 1))


@pytest.mark.parametrize("scoring", SCORINGS)
def test_given_experts_are_used_even_where_their_scores_are_zero_in_fp32(scoring):
    router = Router(moe_of(scoring=scoring), HIDDEN)
    router.weight.copy_(torch.tensor([400.0, *[-400.0] * 7])[:, None] / HIDDEN)
    given = torch.tensor([[3, 5], [7, 0]])
    ids_TK, weight_TK = router(torch.ones(2, HIDDEN), given)
    assert ids_TK.tolist() == given.tolist()
    same(weight_TK, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


def test_ranks_that_would_share_a_key_value_head_are_refused():
    with pytest.raises(UserError, match="of 4 must divide the 2 key-value heads"):
        Attention(gqa(), HIDDEN, Part(0, 4))
