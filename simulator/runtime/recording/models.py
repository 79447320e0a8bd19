"""Three models that are trained side by side: a mixture of experts, and two dense ones of its total
and its active size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from simulator.base.frozen import validate
from simulator.config.ffns.dense import DenseFFN
from simulator.config.model import ModelSpec

NUM_BYTES = 256
"""Size of the vocabulary: every byte is a token."""
MOE, SAME_TOTAL, SAME_ACTIVE = "mixture of experts", "dense, same total", "dense, same active"


@dataclass(frozen=True)
class Shape:
    """Shape of the mixture of experts; the dense models differ from it in their feed-forward blocks
    only.

    Small enough that two cores train all three in two minutes, with enough experts for a recording
    to show imbalance.
    """

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_experts: int = 16
    top_k: int = 2
    intermediate_size: int = 128
    """Inner width of one expert."""
    context: int = 128
    """Tokens of a sequence."""
    batch: int = 8
    """Sequences of a step."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch."""
        return self.context * self.batch


def three_models(shape: Shape, name: str) -> dict[str, ModelSpec]:
    """Make the mixture of experts and its two dense counterparts.

    The feed-forward block of a dense one is as wide as all experts, or as the ``top_k`` that a
    token uses, plus the equivalent of the router's matrix; so the parameter counts agree to within
    one neuron in each layer.
    """
    experts = {
        "kind": "moe",
        "num_experts": shape.num_experts,
        "top_k": shape.top_k,
        "intermediate_size": shape.intermediate_size,
    }
    moe = _model(shape, name, experts)
    return {
        MOE: moe,
        SAME_TOTAL: _dense(shape, f"{name}-dense-total", moe.num_parameters),
        SAME_ACTIVE: _dense(shape, f"{name}-dense-active", moe.num_active_parameters),
    }


def _dense(shape: Shape, name: str, num_parameters: int) -> ModelSpec:
    """Find the dense model whose count comes nearest to ``num_parameters``."""
    narrowest = _model(shape, name, {"kind": "dense", "intermediate_size": 1})
    per_neuron = shape.num_layers * DenseFFN(kind="dense", intermediate_size=1).num_parameters(
        shape.hidden_size
    )
    width = 1 + round((num_parameters - narrowest.num_parameters) / per_neuron)
    return _model(shape, name, {"kind": "dense", "intermediate_size": width})


def _model(shape: Shape, name: str, ffn: dict[str, object]) -> ModelSpec:
    attention = {
        "kind": "gqa",
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_heads,
        "head_size": shape.hidden_size // shape.num_heads,
    }
    table = {
        "name": name,
        "hidden_size": shape.hidden_size,
        "vocab_size": NUM_BYTES,
        "ties_embeddings": True,
        "max_context_tokens": shape.context,
        "weight_dtype": "fp32",
        "layers": [{"repeat": shape.num_layers, "pattern": [["attention", "ffn"]]}],
        "mixers": {"attention": attention},
        "ffns": {"ffn": ffn},
    }
    return validate(ModelSpec, table, name)


def model_toml(model: ModelSpec, title: str, trace: str, source: str) -> str:
    """Write a mixture of experts as a model file that every command reads.

    Args:
        trace: recording that its routing replays; relative to the scenario's folder.
        source: source of weights and routing, in a sentence.
    """
    moe = model.moe
    assert moe is not None
    run = model.layers[0]
    (mixer,) = model.mixers.values()
    heads = mixer.model_dump()
    return f"""# {title}. Every byte is a token.
title = {_text(title)}
hidden_size = {model.hidden_size}
vocab_size = {model.vocab_size}
ties_embeddings = true
max_context_tokens = {model.max_context_tokens}
weight_dtype = "{model.weight_dtype}"
layers = [{{ repeat = {run.repeat}, pattern = [["attention", "ffn"]] }}]
routing_source = {_text(source)}

[mixers.attention]
kind = "gqa"
num_heads = {heads["num_heads"]}
num_kv_heads = {heads["num_kv_heads"]}
head_size = {heads["head_size"]}

[ffns.ffn]
kind = "moe"
num_experts = {moe.num_experts}
top_k = {moe.top_k}
intermediate_size = {moe.intermediate_size}

# The path is relative to the folder of the scenario that names this model, or to the current one.
[routing]
kind = "replay"
trace = {_text(trace)}

[published]
total_parameters = {model.num_parameters:.6e}
active_parameters = {model.num_active_parameters:.6e}

[sources]
shape = {_text(source)}
"""


def _text(words: str) -> str:
    """Write a TOML basic string, whose escapes are those of JSON."""
    return json.dumps(words, ensure_ascii=False)
