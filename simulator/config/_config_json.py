"""The keys of a Hugging Face ``config.json``: looked up with checks, and completed by what an
architecture's code fixes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simulator.base.errors import UserError

Table = dict[str, Any]
"""Part of a model's table, as TOML would have it."""


class Convention(NamedTuple):
    """Facts that the modelling code of an architecture fixes and its ``config.json`` does not
    say.
    """

    qk_norm: str | None = None
    """``head``: one norm of ``head_size`` for queries and one for keys; ``all``: over all heads;
    ``none``: without weights."""
    has_qkv_bias: bool = False
    has_output_bias: bool = True
    """Whether ``attention_bias`` covers the output matrix too."""
    has_output_gate: bool = False
    has_sinks: bool = False
    has_router_bias: bool = False
    has_expert_bias: bool = False
    has_shared_gate: bool = False
    num_shared_experts: int = 0
    scoring: str = "softmax"
    is_gated: bool | None = None
    """Whether a ``gelu`` feed-forward block has a gate."""
    has_post_norms: bool = False
    """Two more norms a layer, behind the mixer and behind the feed-forward block."""
    ties_embeddings: bool | None = False
    """The default of ``tie_word_embeddings``; ``None``: the key must be there."""
    is_rms_norm: bool = True
    full_attention_every: int | None = None
    """Number of layers from one with full attention to the next, among sliding or chunked ones."""
    active_counts_embedding: bool = True
    """Whether its makers count the input embedding among the active parameters, as far as their
    printed figures tell."""
    active_counts_head: bool = True


_GEMMA = Convention(ties_embeddings=True, is_gated=True)
_QWEN_HYBRID = Convention(qk_norm="head", has_shared_gate=True, has_output_gate=True)
_UNKNOWN = Convention(ties_embeddings=None, is_rms_norm=False)
_WITHOUT_EMBEDDING = _UNKNOWN._replace(active_counts_embedding=False)
_CONVENTIONS = {
    "llama": Convention(),
    "mistral": Convention(),
    "mixtral": Convention(),
    "qwen2": Convention(has_qkv_bias=True),
    "qwen2_moe": Convention(has_qkv_bias=True, has_shared_gate=True),
    "qwen3": Convention(qk_norm="head"),
    "qwen3_moe": Convention(qk_norm="head"),
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_5_text": _QWEN_HYBRID,
    "qwen3_5_moe_text": _QWEN_HYBRID._replace(active_counts_embedding=False),
    "olmoe": Convention(qk_norm="all"),
    "gemma": _GEMMA,
    "gemma2": _GEMMA._replace(has_post_norms=True, full_attention_every=2),
    "gemma3_text": _GEMMA._replace(has_post_norms=True, qk_norm="head", full_attention_every=6),
    "glm4_moe": Convention(
        qk_norm="head", has_output_bias=False, has_router_bias=True, scoring="sigmoid"
    ),
    "gpt_oss": Convention(
        has_sinks=True, has_router_bias=True, has_expert_bias=True, active_counts_embedding=False
    ),
    "deepseek_v2": _WITHOUT_EMBEDDING,
    "deepseek_v3": _WITHOUT_EMBEDDING,
    "deepseek_v4": _WITHOUT_EMBEDDING,
    "kimi_k2": _WITHOUT_EMBEDDING,
    "minimax_m2": _WITHOUT_EMBEDDING,
    "glm_moe_dsa": _WITHOUT_EMBEDDING._replace(active_counts_head=False),
    "llama4_text": Convention(
        qk_norm="none", num_shared_experts=1, scoring="sigmoid", full_attention_every=4
    ),
    "nemotron_h": Convention(
        has_router_bias=True, scoring="sigmoid", active_counts_embedding=False
    ),
}

_PARTS = re.compile(
    r"expert|^moe_|mamba|^ssm_|^linear_|^attn_|attention_layers|block_type|conv_L|kv_shared|parallel_|encoder_decoder"
)
"""Keys like these describe parts of a model: one that was not read is a part that would be left out
of the counts."""
_NOT_PARTS = re.compile(
    r"dtype|_act$|coef|loss|jitter|router_|norm_topk|drop|kernels|init|scal|soft|implementation|^expert_model|ep_size"
)


class ConfigKeys:
    """The keys of a ``config.json``, those of the language model first; remembers which ones were
    read.
    """

    def __init__(self, config: dict[str, object], path: Path) -> None:
        self.path = path
        text = config.get("text_config")
        self._levels = [text, config] if isinstance(text, dict) else [config]
        self._read: set[str] = set()
        self.convention = _CONVENTIONS.get(str(self.find("model_type")), _UNKNOWN)

    def find(self, *keys: str) -> object:
        """The value under the first of the equivalent ``keys`` that is there and not null, or
        ``None``.
        """
        self._read.update(keys)
        for key in keys:
            for level in self._levels:
                if level.get(key) is not None:
                    return level[key]
        return None

    def error(self, message: str) -> UserError:
        """Error about these keys: the message behind the name of the file."""
        return UserError(f"{self.path}: {message}")

    def size(self, *keys: str) -> int:
        """A whole number that must be there.

        Raises:
            UserError: if it is missing, is no whole number above 0, or its spellings contradict
                each other.
        """
        found = self.size_or(0, *keys)
        if found == 0 and self.find(*keys) is not None:
            raise self.error(f"{keys[0]} must be above 0")
        if found == 0:
            others = f" (or {', '.join(keys[1:])})" if keys[1:] else ""
            raise self.error(f"missing key '{keys[0]}'{others}")
        return found

    def size_or(self, default: int, *keys: str) -> int:
        """A whole number, or ``default`` where none of ``keys`` is there."""
        values: dict[str, int] = {}
        for key in keys:
            value = self.find(key)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise self.error(f"{key} must be a whole number, got {value!r}")
            values[key] = value
        if len(set(values.values())) > 1:
            raise self.error(
                "contradictory keys: "
                + ", ".join(f"{key} = {value}" for key, value in values.items())
            )
        return next(iter(values.values()), default)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false, or ``default`` where the key is not there."""
        value = self.find(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, got {value!r}")
        return default if value is None else value

    def per_layer(self, key: str, num_layers: int, num_more: int = 0) -> Sequence[Any] | None:
        """A list (or text) with an entry for each layer, and for at most ``num_more`` prediction
        modules behind them.
        """
        value = self.find(key)
        if value is None:
            return None
        if (
            not isinstance(value, (list, str))
            or not num_layers <= len(value) <= num_layers + num_more
        ):
            found = len(value) if isinstance(value, (list, str)) else repr(value)
            raise self.error(
                f"{key} must have an entry for each of num_hidden_layers = {num_layers} "
                f"layers, has {found}"
            )
        return value[:num_layers]

    def refuse_unread_parts(self) -> None:
        """Make sure that nothing of the model was left out.

        Raises:
            UserError: if a key that was not read describes a part of the model.
        """
        found = {key for level in self._levels for key, value in level.items() if value}
        for key in sorted(found - self._read):
            if _PARTS.search(key) and not _NOT_PARTS.search(key):
                raise self.error(
                    f"key '{key}' describes a part of the model that is not understood; "
                    "describe the model in TOML"
                )
