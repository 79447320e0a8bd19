"""The model's blocks as loops that anyone can check: over tokens, experts, heads, queries, one at a
time and in fp64.
"""

import math

import torch

from simulator.config.ffns.moe import MoE
from simulator.config.mixers.gqa import GroupedQueryAttention
from simulator.runtime.layers.mixers.gqa import Cache

HIDDEN = 24
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5, "check_dtype": False}


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


def gqa(num_heads=4, num_kv_heads=2, head_size=6, **keys):
    return GroupedQueryAttention(
        kind="gqa", num_heads=num_heads, num_kv_heads=num_kv_heads, head_size=head_size, **keys
    )
