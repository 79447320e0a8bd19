"""Models of every structure that layers can execute, small enough to run in milliseconds."""

import torch

from simulator.config.model import ModelSpec, load_model

GQA = {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_size": 6}
DENSE = {"kind": "dense", "intermediate_size": 20}
MOE = {"kind": "moe", "num_experts": 8, "top_k": 3, "intermediate_size": 10}
SHARED = {"num_shared_experts": 2, "shared_intermediate_size": 14}


def spec(ffn, mixer=GQA, pattern=(("m", "f"), ("m", "f")), **keys):
    has_mixer, has_ffn = (any(half in layer for layer in pattern) for half in "mf")
    table = {
        "name": "small",
        "hidden_size": 24,
        "vocab_size": 50,
        "mixers": {"m": mixer} if has_mixer else {},
        "ffns": {"f": ffn} if has_ffn else {},
        **keys,
    }
    return ModelSpec.model_validate(
        {**table, "layers": [{"pattern": [list(layer) for layer in pattern]}]}
    )


SPECS = {
    "dense": spec(DENSE),
    "dense, not gated": spec({**DENSE, "is_gated": False}),
    "dense, every bias": spec(
        {**DENSE, "has_bias": True}, {**GQA, "has_qkv_bias": True, "has_output_bias": True}
    ),
    "dense, not gated, bias": spec(
        {**DENSE, "is_gated": False, "has_bias": True}, {**GQA, "has_qkv_bias": True}
    ),
    "tied embeddings": spec(DENSE, ties_embeddings=True),
    "window": spec(DENSE, {**GQA, "num_kv_heads": 4, "window": 3}),
    "experts": spec(MOE),
    "experts, not gated": spec({**MOE, "is_gated": False}),
    "experts, biases": spec({**MOE, "has_expert_bias": True, "has_router_bias": True}),
    "experts, not gated, biases": spec({**MOE, "is_gated": False, "has_expert_bias": True}),
    "shared experts": spec({**MOE, **SHARED}),
    "shared experts behind a gate": spec(
        {**MOE, **SHARED, "has_shared_gate": True, "has_router_bias": True}
    ),
    "groups": spec(
        {**MOE, "num_groups": 4, "num_limited_groups": 2, "scoring": "sigmoid"},
        ties_embeddings=True,
    ),
    "layers without a half": spec(
        {**MOE, **SHARED}, pattern=[("m", "none"), ("none", "f"), ("m", "f"), ("none", "none")]
    ),
    "no mixer at all": spec(DENSE, pattern=[("none", "f")]),
    "no ffn at all": spec(DENSE, pattern=[("m", "none")]),
}
PLAIN = ("llama-2-70b", "llama-3.1-8b", "mixtral-8x7b", "qwen1.5-moe-a2.7b")
OTHERS = (
    "llama-2-7b",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "mixtral-8x22b",
    "llama-4-maverick",
    "gpt-4-rumoured",
    "qwen3-30b-a3b",
)


def shrunk(name):
    """A shipped model with its structure and small sizes: norms, sinks and positions that layers
    cannot run are left out.
    """
    model = load_model(name, "test")
    table = model.model_dump()
    for mixer in table["mixers"].values():
        ratio = mixer["num_heads"] // mixer["num_kv_heads"]
        mixer.update(
            num_heads=2 * ratio,
            num_kv_heads=2,
            head_size=4,
            norms=0,
            num_sinks=0,
            has_output_gate=False,
        )
        mixer["window"] = mixer["window"] and 4
    for ffn in table["ffns"].values():
        ffn["intermediate_size"] = 12
        if ffn["kind"] == "moe":
            ffn["num_experts"] = max(ffn["top_k"], ffn["num_experts"] // 8)
            ffn["shared_intermediate_size"] = 6 * ffn["num_shared_experts"]
    for run in table["layers"]:
        run["repeat"] = min(run["repeat"], 2)
    return ModelSpec.model_validate(
        {**table, "hidden_size": 16, "vocab_size": 40, "num_positions": 0, "norm_vectors": 1}
    )


def tokens(num, vocab=40):
    return torch.arange(num) * 7 % vocab


def inputs(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
