"""The model's blocks against loops that anyone can check: over tokens, experts, heads, queries, one
at a time and in fp64.
"""

# ruff: noqa: E402 (what follows needs torch, and is skipped without)

import math

import pytest

torch = pytest.importorskip("torch")

from simulator.base.errors import UserError
from simulator.config.attention import GroupedQueryAttention
from simulator.config.ffn import DenseFFN, MoE
from simulator.config.model import ModelSpec
from simulator.runtime.layers.attention import Attention, Cache, Chunk
from simulator.runtime.layers.experts import Experts
from simulator.runtime.layers.ffn import MixtureOfExperts, SharedExpert, dense_ffn
from simulator.runtime.layers.part import Part
from simulator.runtime.layers.router import Router
from simulator.runtime.layers.transformer import Transformer

HIDDEN = 24
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5, "check_dtype": False}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


class Noise(dict):
    """Weights of any name, biases and norms too, none of them zero or one."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, name, shape):
        if name not in self:
            self[name] = torch.randn(shape, generator=self.generator) / (
                shape[-1] ** 0.5 if len(shape) > 1 else 2
            )
        return self[name]

    def __getitem__(self, name):
        return super().__getitem__(name).double() if name in self else 0.0


def inputs(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(found, expected):
    torch.testing.assert_close(found, expected, **TOLERANCE)


def slow_ffn(noise, name, x_H, is_gated):
    up = noise[f"{name}.up"] @ x_H + noise[f"{name}.up_bias"]
    if is_gated:
        half = len(up) // 2
        hidden = torch.stack(
            [g / (1 + (-g).exp()) * v for g, v in zip(up[:half], up[half:], strict=True)]
        )
    else:
        hidden = up * (1 + torch.erf(up / math.sqrt(2))) / 2
    return noise[f"{name}.down"] @ hidden + noise[f"{name}.down_bias"]


def slow_scores(noise, name, x_H, scoring):
    logits = (noise[f"{name}.weight"] @ x_H).tolist()
    if scoring == "softmax":
        return [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
    if scoring == "sigmoid":
        return [1 / (1 + math.exp(-logit)) for logit in logits]
    return [math.sqrt(math.log(1 + math.exp(logit))) for logit in logits]


def slow_choice(noise, name, scores, moe):
    bias = noise[f"{name}.bias"] if moe.has_router_bias else torch.zeros(moe.num_experts)
    rank = [score + add for score, add in zip(scores, bias.tolist(), strict=True)]
    size = moe.num_experts // moe.num_groups
    groups = range(moe.num_groups)
    votes = [sum(sorted(rank[g * size : (g + 1) * size], reverse=True)[:2]) for g in groups]
    open_groups = sorted(groups, key=lambda g: -votes[g])[: moe.num_limited_groups]
    candidates = [e for e in range(moe.num_experts) if e // size in open_groups]
    return sorted(candidates, key=lambda e: -rank[e])[: moe.top_k]


def slow_moe(noise, name, x_H, moe, chosen=None):
    scores = slow_scores(noise, f"{name}.router", x_H, moe.scoring)
    chosen = slow_choice(noise, f"{name}.router", scores, moe) if chosen is None else chosen
    total = sum(scores[e] for e in chosen)
    result = sum(
        scores[e] / total * slow_ffn(noise, f"{name}.experts.{e}", x_H, moe.is_gated)
        for e in chosen
    )
    if moe.num_shared_experts:
        gate = noise[f"{name}.shared.gate"] @ x_H if moe.has_shared_gate else torch.tensor(math.inf)
        result = result + torch.sigmoid(gate) * slow_ffn(noise, f"{name}.shared", x_H, moe.is_gated)
    return result


def turned(x, position):
    """Rotary positions: entries ``i`` and ``i + d / 2`` are a complex number that turns ``10000 **
    (-2 i / d)`` a position.
    """
    half = len(x) // 2
    angle = torch.tensor(
        [position * 10_000.0 ** (-2 * i / len(x)) for i in range(half)], dtype=torch.float64
    )
    number = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([number.real, number.imag])


def slow_attention(noise, name, x_SLH, spec):
    """Result ``[S, L, H]`` and a cache of everything."""
    size, group = spec.head_size, spec.num_heads // spec.num_kv_heads
    num_sequences, length, _ = x_SLH.shape
    qkv = x_SLH.double() @ noise[f"{name}.qkv"].T + noise[f"{name}.qkv_bias"]
    heads = qkv.view(num_sequences, length, -1, size)
    keys = torch.zeros(num_sequences, spec.num_kv_heads, length, size, dtype=torch.float64)
    values, mixed = (
        torch.zeros_like(keys),
        torch.zeros(num_sequences, length, spec.num_heads, size, dtype=torch.float64),
    )
    for s in range(num_sequences):
        for p in range(length):
            for h in range(spec.num_kv_heads):
                keys[s, h, p] = turned(heads[s, p, spec.num_heads + h], p)
                values[s, h, p] = heads[s, p, spec.num_heads + spec.num_kv_heads + h]
            first = 0 if spec.window is None else max(0, p - spec.window + 1)
            for h in range(spec.num_heads):
                query = turned(heads[s, p, h], p)
                scores = [
                    float(query @ keys[s, h // group, e]) / math.sqrt(size)
                    for e in range(first, p + 1)
                ]
                total = sum(map(math.exp, scores))
                for e, score in zip(range(first, p + 1), scores, strict=True):
                    mixed[s, p, h] += math.exp(score) / total * values[s, h // group, e]
    result = mixed.flatten(2) @ noise[f"{name}.output"].T + noise[f"{name}.output_bias"]
    return result, Cache(keys.float(), values.float())


def moe_of(num_experts=8, top_k=2, intermediate_size=10, **keys):
    return MoE(
        kind="moe",
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=intermediate_size,
        **keys,
    )


GROUPED = {"num_experts": 16, "top_k": 3, "num_groups": 4, "num_limited_groups": 2}
SCORINGS = ["softmax", "sigmoid", "sqrtsoftplus"]
CHOICES = [
    {"top_k": 1},
    {},
    {"top_k": 8},
    {"has_router_bias": True},
    GROUPED,
    {**GROUPED, "has_router_bias": True},
    {**GROUPED, "num_groups": 16, "num_limited_groups": 5},
]


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("keys", CHOICES)
def test_router_scores_chooses_and_weighs_as_a_loop_does(scoring, keys):
    moe, noise, x_TH = moe_of(scoring=scoring, **keys), Noise(), inputs(40, HIDDEN)
    router = Router(moe, HIDDEN)
    router.load(noise, "r")
    ids_TK, weight_TK = router(x_TH)
    same(weight_TK.sum(dim=1), torch.ones(40))
    for x_H, ids, weights in zip(x_TH.double(), ids_TK.tolist(), weight_TK.tolist(), strict=True):
        scores = slow_scores(noise, "r", x_H, scoring)
        assert ids == slow_choice(noise, "r", scores, moe)
        assert (
            len({e // (moe.num_experts // moe.num_groups) for e in ids}) <= moe.num_limited_groups
        )
        assert weights == pytest.approx(
            [scores[e] / sum(scores[other] for other in ids) for e in ids], rel=1e-4
        )


@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_bias_moves_the_choice_and_not_the_weights(scoring):
    moe, x_TH = moe_of(scoring=scoring, has_router_bias=True), inputs(30, HIDDEN)
    plain, biased = Router(moe, HIDDEN), Router(moe, HIDDEN)
    for router, bias in (
        (plain, torch.zeros(8)),
        (biased, torch.tensor([9.0, 0, 0, 0, 0, 0, 0, 9.0])),
    ):
        noise = Noise()
        router.load(noise, "r")
        router.bias.copy_(bias)
    ids_TK, weight_TK = biased(x_TH)
    assert set(ids_TK.flatten().tolist()) == {0, 7} != set(plain(x_TH)[0].flatten().tolist())
    same(weight_TK, plain(x_TH, ids_TK)[1])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_given_experts_are_used_even_where_their_scores_are_zero_in_fp32(scoring):
    router = Router(moe_of(scoring=scoring), HIDDEN)
    router.weight.copy_(torch.tensor([400.0, *[-400.0] * 7])[:, None] / HIDDEN)
    given = torch.tensor([[3, 5], [7, 0]])
    ids_TK, weight_TK = router(torch.ones(2, HIDDEN), given)
    assert ids_TK.tolist() == given.tolist()
    same(weight_TK, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    "rows_P", [[3, 3, 3, 3], [11, 0, 1, 0], [0, 0, 0, 5], [1, 0, 0, 0], [0, 0, 0, 0]]
)
def test_each_slots_tokens_go_through_its_own_expert_and_parts_add_up(rows_P, has_bias, is_gated):
    moe, noise, x_NH = (
        moe_of(is_gated=is_gated, has_expert_bias=has_bias),
        Noise(),
        inputs(sum(rows_P), HIDDEN),
    )
    expert_P = [5, 0, 7, 5]  # two slots hold copies of one expert
    expert_N = [expert for expert, rows in zip(expert_P, rows_P, strict=True) for _ in range(rows)]
    for size in (1, 2, 3, 4, 12):  # 10 features: even parts, uneven ones, and parts without any
        total = 0
        for rank in range(size):
            experts = Experts(moe, HIDDEN, expert_P, Part(rank, size))
            experts.load(noise, "e")
            total = total + experts(x_NH, rows_P)
        expected = [
            slow_ffn(noise, f"e.{e}", x, is_gated)
            for e, x in zip(expert_N, x_NH.double(), strict=True)
        ]
        same(total, torch.stack(expected) if expected else torch.empty(0, HIDDEN))


@pytest.mark.parametrize("is_gated", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_tokens", [0, 1, 9])
def test_the_parts_of_a_dense_block_add_up_to_it_and_count_biases_once(
    num_tokens, has_bias, is_gated
):
    ffn, noise = (
        DenseFFN(kind="dense", intermediate_size=10, is_gated=is_gated, has_bias=has_bias),
        Noise(),
    )
    x_TH = inputs(num_tokens, HIDDEN)
    for size in (1, 2, 3, 4, 12):
        total = 0
        for rank in range(size):
            block = dense_ffn(ffn, HIDDEN, Part(rank, size))
            block.load(noise, "f", x_TH)
            total = total + block(x_TH)
        expected = [slow_ffn(noise, "f", x_H, is_gated) for x_H in x_TH.double()]
        same(total, torch.stack(expected) if expected else torch.empty(0, HIDDEN))


def test_the_parts_of_a_gated_shared_expert_add_up():
    moe, noise, x_TH = (
        moe_of(num_shared_experts=2, shared_intermediate_size=14, has_shared_gate=True),
        Noise(),
        inputs(6, HIDDEN),
    )
    total = 0
    for rank in range(3):
        shared = SharedExpert(moe, HIDDEN, Part(rank, 3))
        shared.load(noise, "s", x_TH)
        total = total + shared(x_TH)
    same(
        total,
        torch.stack(
            [
                torch.sigmoid(noise["s.gate"] @ x) * slow_ffn(noise, "s", x, True)
                for x in x_TH.double()
            ]
        ),
    )


MIXTURES = [
    *({"top_k": k} for k in range(1, 9)),
    {"is_gated": False, "has_expert_bias": True, "has_router_bias": True},
    {"num_shared_experts": 1, "shared_intermediate_size": 12},
    {
        "num_shared_experts": 2,
        "shared_intermediate_size": 14,
        "has_shared_gate": True,
        "scoring": "sigmoid",
    },
    {
        **GROUPED,
        "has_router_bias": True,
        "scoring": "sqrtsoftplus",
        "num_shared_experts": 1,
        "shared_intermediate_size": 9,
    },
    {"num_experts": 64, "top_k": 2},  # most experts get no token
    {"num_experts": 1, "top_k": 1},
]


@pytest.mark.parametrize("num_tokens", [0, 1, 13])
@pytest.mark.parametrize("keys", MIXTURES)
def test_a_mixture_of_experts_is_the_weighted_sum_of_each_tokens_experts(keys, num_tokens):
    moe, noise, x_TH = moe_of(**keys), Noise(), inputs(num_tokens, HIDDEN)
    layer = MixtureOfExperts(moe, HIDDEN)
    layer.load(noise, "m", x_TH)
    result, ids_TK = layer(x_TH)
    assert ids_TK.shape == (num_tokens, moe.top_k)
    for x_H, found in zip(x_TH.double(), result, strict=True):
        same(found, slow_moe(noise, "m", x_H, moe))
    given = torch.randn(num_tokens, moe.num_experts).argsort(dim=1)[:, : moe.top_k]
    for x_H, ids, found in zip(x_TH.double(), given.tolist(), layer(x_TH, given)[0], strict=True):
        same(found, slow_moe(noise, "m", x_H, moe, ids))


def gqa(num_heads=4, num_kv_heads=2, head_size=6, **keys):
    return GroupedQueryAttention(
        kind="gqa", num_heads=num_heads, num_kv_heads=num_kv_heads, head_size=head_size, **keys
    )


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
            if isinstance(block, MoE):
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
    again, same_LTK = model(tokens, chunk, topk_ids_LTK=used_LTK)
    assert torch.equal(free, again)
    assert torch.equal(used_LTK, same_LTK)
    other_LTK = (used_LTK + 1) % 8
    moved, replayed_LTK = model(tokens, chunk, topk_ids_LTK=other_LTK)
    assert torch.equal(replayed_LTK, other_LTK)
    assert not torch.allclose(free, moved)
