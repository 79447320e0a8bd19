"""Grouped-query attention over new tokens and a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from simulator.base.errors import UserError
from simulator.config.mixers.gqa import GroupedQueryAttention
from simulator.runtime.layers.kinds import Cached, Chunk, Draw, MixerLayer
from simulator.runtime.layers.weights import WHOLE, Part, Weights, empty, fill

_ROPE_BASE = 10_000.0
"""Base of rotary positions (Su et al., arXiv:2104.09864)."""


class Cache(NamedTuple):
    """Keys and values of the context, ``[sequences, kv heads, context, head size]`` each."""

    keys: Tensor
    values: Tensor


class Attention(MixerLayer):
    """Full or sliding-window attention with rotary positions (Su et al., arXiv:2104.09864); a part
    has some of the heads.
    """

    def __init__(self, spec: GroupedQueryAttention, hidden_size: int, part: Part = WHOLE) -> None:
        super().__init__()
        if spec.num_kv_heads % part.size:
            raise UserError(
                f"tensor parallelism of {part.size} must divide the {spec.num_kv_heads} key-value "
                "heads to be executed"
            )
        self.spec, self.hidden_size, self.part = spec, hidden_size, part
        self.num_heads, self.num_kv_heads = (
            spec.num_heads // part.size,
            spec.num_kv_heads // part.size,
        )
        rows = (self.num_heads + 2 * self.num_kv_heads) * spec.head_size
        self.qkv = empty(rows, hidden_size)
        self.output = empty(hidden_size, self.num_heads * spec.head_size)
        self.qkv_bias = empty(rows) if spec.has_qkv_bias else None
        self.output_bias = empty(hidden_size) if spec.has_output_bias and part.rank == 0 else None

    @classmethod
    def check(cls, spec: GroupedQueryAttention, where: str) -> None:
        for field in ("has_output_gate", "num_sinks", "norms"):
            if getattr(spec, field):
                raise UserError(
                    f"{where}: attention with {field} = {getattr(spec, field)} can be "
                    "simulated, but not executed"
                )

    @classmethod
    def draw_cache(
        cls, spec: GroupedQueryAttention, context_tokens: int, part: Part, draws: Sequence[Draw]
    ) -> Cache:
        shape = (2, spec.num_kv_heads, context_tokens, spec.head_size)
        heads = [part.cut(draw(shape), 1) for draw in draws]
        none = torch.empty(0, 2, part.num(spec.num_kv_heads), *shape[2:])
        pairs = torch.stack(heads) if heads else none
        return Cache(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())

    def load(self, weights: Weights, name: str) -> None:
        spec = self.spec
        sizes = [spec.num_heads * spec.head_size, *[spec.num_kv_heads * spec.head_size] * 2]
        qkv = weights.tensor(f"{name}.qkv", (sum(sizes), self.hidden_size))
        fill(self.qkv, torch.cat([self.part.cut(matrix) for matrix in qkv.split(sizes)]))
        fill(
            self.output,
            self.part.cut(weights.tensor(f"{name}.output", (self.hidden_size, sizes[0])), 1),
        )
        if self.qkv_bias is not None:
            bias = weights.tensor(f"{name}.qkv_bias", (sum(sizes),))
            fill(self.qkv_bias, torch.cat([self.part.cut(entry) for entry in bias.split(sizes)]))
        if self.output_bias is not None:
            fill(self.output_bias, weights.tensor(f"{name}.output_bias", (self.hidden_size,)))

    def forward(self, x_TH: Tensor, chunk: Chunk, cache: Cached | None = None) -> Tensor:
        if len(x_TH) == 0:
            return x_TH
        size = self.spec.head_size
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        qkv = functional.linear(x_TH, self.qkv, self.qkv_bias).view(
            chunk.num_sequences, chunk.new_tokens, sum(heads), size
        )
        query, key, value = (
            part.transpose(1, 2) for part in qkv.split(heads, dim=2)
        )  # [sequences, heads, new, head size]
        turn = _rotation(chunk, size, x_TH)
        query, key = _rotate(query, turn), _rotate(key, turn)
        if cache is not None and chunk.context_tokens:
            keys, values = cache
            key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        mixed = self._look(query, key, value, chunk)
        return functional.linear(mixed.reshape(len(x_TH), -1), self.output, self.output_bias)

    def _look(self, query: Tensor, key: Tensor, value: Tensor, chunk: Chunk) -> Tensor:
        """Attention output, ``[sequences, new, heads, head size]``."""
        window = self.spec.window
        is_windowed = window is not None and chunk.context_tokens + chunk.new_tokens > window
        group = self.num_heads // self.num_kv_heads
        if chunk.new_tokens == 1 and not is_windowed:
            # All queries of a group look at the same cache, so it is read once for the group and
            # not copied.
            grouped = query.unflatten(1, (self.num_kv_heads, group)).squeeze(3)
            return functional.scaled_dot_product_attention(grouped, key, value).flatten(1, 2)[
                :, None
            ]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        mask = (
            _mask(chunk, window if is_windowed else None, query.device)
            if chunk.context_tokens or is_windowed
            else None
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        return mixed.transpose(1, 2)


def _mask(chunk: Chunk, window: int | None, device: torch.device) -> Tensor:
    """Mask of the entries that each new token may attend to, ``bool [new, context + new]``."""
    position = torch.arange(
        chunk.context_tokens, chunk.context_tokens + chunk.new_tokens, device=device
    )[:, None]
    entry = torch.arange(chunk.context_tokens + chunk.new_tokens, device=device)[None]
    return (
        (entry <= position) if window is None else (entry <= position) & (entry > position - window)
    )


def _rotation(chunk: Chunk, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    position = torch.arange(
        chunk.context_tokens, chunk.context_tokens + chunk.new_tokens, device=like.device
    )
    rate = _ROPE_BASE ** (-torch.arange(0, head_size, 2, device=like.device) / head_size)
    angle = position[:, None] * rate[None]
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
