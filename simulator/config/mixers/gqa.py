"""Grouped-query attention, with multi-head and multi-query attention at its ends."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import model_validator

from simulator.base.quantities import MOST_WIDTH, Heads, Tokens, Width, value_range
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.linear import Linear
from simulator.config.mixers import ContextTerm, KVHeads, Mixer, count_heads


class GroupedQueryAttention(Mixer):
    """Multi-head (``num_kv_heads == num_heads``), grouped-query and multi-query attention; full,
    sliding or chunked.
    """

    kind: Literal["gqa"]
    """Multi-head, grouped-query or multi-query attention."""
    num_heads: Heads
    """Number of query heads."""
    num_kv_heads: Heads
    """Number of key-value heads, which divides ``num_heads``."""
    head_size: Width
    """Numbers in a query, key or value."""
    window: Tokens | None = None
    """Tokens of the sliding window or chunk; absent = full attention."""
    has_qkv_bias: bool = False
    """Whether the projections of queries, keys and values have biases."""
    has_output_bias: bool = False
    """Whether the output projection has a bias."""
    has_output_gate: bool = False
    """Whether an extra query-sized projection gates the output (Qwen3.5)."""
    num_sinks: Annotated[int, value_range(0, MOST_WIDTH, "sinks")] = 0
    """Number of learned attention sinks, one for each head (gpt-oss)."""

    @model_validator(mode="after")
    def _shares_heads(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({self.num_heads})"
            )
        return self

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        query = self.num_heads * self.head_size
        gate = query if self.has_output_gate else 0
        key_value = 2 * self.num_kv_heads * self.head_size
        return (
            Linear("qkv", hidden_size, query + gate + key_value, "column"),
            Linear("attention output", query, hidden_size, "row"),
        )

    @property
    def split_heads(self) -> int:
        return self.num_heads

    @property
    def kv_heads(self) -> KVHeads:
        return KVHeads(self.num_kv_heads, self.head_size)

    def scale_heads(self, factor: float) -> Self:
        """Query heads grow and KV heads stay, as in families of dense models (Llama 3: 8 of 32,
        64 and 128); where each query head has a KV head of its own, both grow.
        """
        is_shared = self.num_kv_heads < self.num_heads
        heads = count_heads(self.num_heads, factor, self.num_kv_heads if is_shared else 1)
        kv_heads = self.num_kv_heads if is_shared else heads
        sinks = heads if self.num_sinks else 0
        return self.model_copy(
            update={"num_heads": heads, "num_kv_heads": kv_heads, "num_sinks": sinks}
        )

    def context_terms(self) -> tuple[ContextTerm, ...]:
        pair = 4.0 * self.num_heads * self.head_size  # QK^T and PV, a multiply and an add each
        cached = 2.0 * self.num_kv_heads * self.head_size
        moved = 2.0 * self.num_heads * self.head_size + cached
        return (
            ContextTerm(
                pair,
                pair,
                cached,
                self.num_kv_heads,
                self.window,
                num_heads=self.num_heads,
                prefill_moved_elements=moved,
                decode_moved_elements=moved,
                appended_elements=cached / 2,
            ),
        )

    def num_small_parameters(self, hidden_size: int) -> int:
        bias = (self.num_heads + 2 * self.num_kv_heads) * self.head_size if self.has_qkv_bias else 0
        return self.norms + bias + (hidden_size if self.has_output_bias else 0) + self.num_sinks

    @staticmethod
    def read_config(read: ConfigKeys, layer: str, hidden_size: int) -> Table:
        """The table that the keys of a ``config.json`` describe.

        Args:
            layer: ``"full"``, ``"sliding"`` or ``"chunked"``.

        Raises:
            UserError: if a key is missing or is not understood.
        """
        convention, num_heads = read.convention, read.size("num_attention_heads")
        num_kv_heads = read.size("num_key_value_heads")
        head_size = read.size_or(hidden_size // num_heads, "head_dim")
        if read.find("head_dim") is None and hidden_size % num_heads:
            raise read.error(
                f"missing key 'head_dim': num_attention_heads = {num_heads} does not divide "
                f"hidden_size = {hidden_size}"
            )
        has_bias = read.flag("attention_bias")
        table: Table = {
            "kind": "gqa",
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_size": head_size,
            "has_qkv_bias": read.flag("qkv_bias", default=has_bias or convention.has_qkv_bias),
            "has_output_bias": has_bias and convention.has_output_bias,
            "has_output_gate": read.flag("attn_output_gate", default=convention.has_output_gate),
            "num_sinks": num_heads if convention.has_sinks else 0,
            "norms": _qk_norms(read, num_heads, num_kv_heads, head_size)
            + (2 * hidden_size if convention.has_post_norms else 0),
        }
        if layer == "sliding":
            table["window"] = read.size("sliding_window")
        if layer == "chunked":
            table["window"] = read.size("attention_chunk_size")
        return table


def _qk_norms(read: ConfigKeys, num_heads: int, num_kv_heads: int, head_size: int) -> int:
    """Norm weights on queries and keys."""
    kind = read.convention.qk_norm if read.flag("use_qk_norm", default=True) else "none"
    if kind is None and read.find("use_qk_norm"):
        kind = {"per_layer": "all"}.get(str(read.find("qk_norm_type")))
        if kind is None:
            raise read.error(
                "use_qk_norm is true, but the size of the norms cannot be told "
                "for this architecture"
            )
    return {"head": 2 * head_size, "all": (num_heads + num_kv_heads) * head_size}.get(
        kind or "none", 0
    )
