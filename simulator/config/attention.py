"""Attention: mixers that keep what they saw of each token in a cache."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from simulator.base.frozen import Frozen
from simulator.base.quantities import TokenCount, Tokens, Width, WidthOrNone
from simulator.config.linear import Linear
from simulator.config.mixer_kind import ContextTerm, MixerKind


class GroupedQueryAttention(MixerKind):
    """Multi-head (``num_kv_heads == num_heads``), grouped-query and multi-query attention; full,
    sliding or chunked.
    """

    kind: Literal["gqa"]
    num_heads: Width
    num_kv_heads: Width
    head_size: Width
    window: Tokens | None = None
    """Sliding window or chunk in tokens; absent = full attention."""
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_output_gate: bool = False
    """An extra query-sized projection gates the output (Qwen3.5)."""
    num_sinks: WidthOrNone = 0
    """Learned attention sinks, one number a head (gpt-oss)."""

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


class SparseIndex(Frozen):
    """DeepSeek sparse attention: a light indexer scores the context, the best ``top_k`` entries are
    attended.
    """

    num_heads: Width
    head_size: Width
    top_k: Tokens


class LatentAttention(MixerKind):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): one latent vector a token is
    cached for all heads.

    Prefill expands the latent into keys and values; decode absorbs the expansion into the query and
    reads the latent itself.
    """

    kind: Literal["mla"]
    num_heads: Width
    query_rank: Width | None = None
    """Low rank of the query projection; absent = a full matrix."""
    kv_rank: Width
    nope_head_size: Width
    rope_head_size: Width
    value_head_size: Width
    index: SparseIndex | None = None

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        query = self.num_heads * (self.nope_head_size + self.rope_head_size)
        if self.query_rank is None:
            queries = [Linear("query", hidden_size, query, "column")]
        else:
            queries = [
                Linear("query down", hidden_size, self.query_rank, "whole"),
                Linear("query up", self.query_rank, query, "column"),
            ]
        indexer = []
        if self.index is not None:
            indexer = [
                Linear(
                    "index query",
                    self.query_rank or hidden_size,
                    self.index.num_heads * self.index.head_size,
                    "whole",
                ),
                Linear("index key", hidden_size, self.index.head_size, "whole"),
                Linear("index weight", hidden_size, self.index.num_heads, "whole"),
            ]
        return (
            *queries,
            Linear("latent", hidden_size, self.kv_rank + self.rope_head_size, "whole"),
            Linear(
                "latent up",
                self.kv_rank,
                self.num_heads * (self.nope_head_size + self.value_head_size),
                "column",
            ),
            Linear("attention output", self.num_heads * self.value_head_size, hidden_size, "row"),
            *indexer,
        )

    def num_small_parameters(self, hidden_size: int) -> int:
        # One norm on each latent; the index keys have a LayerNorm, which has two vectors.
        return (
            self.norms
            + (self.query_rank or 0)
            + self.kv_rank
            + (2 * self.index.head_size if self.index else 0)
        )

    def context_terms(self) -> tuple[ContextTerm, ...]:
        prefill = (
            2.0
            * self.num_heads
            * (self.nope_head_size + self.rope_head_size + self.value_head_size)
        )
        decode = 2.0 * self.num_heads * (2 * self.kv_rank + self.rope_head_size)
        cached = float(self.kv_rank + self.rope_head_size)
        expanded = (
            2.0
            * self.num_heads
            * (self.nope_head_size + self.rope_head_size + self.value_head_size)
        )
        absorbed = float(self.num_heads * (2 * self.kv_rank + self.rope_head_size))
        attended = ContextTerm(
            prefill,
            decode,
            cached,
            1,
            num_heads=self.num_heads,
            prefill_moved_elements=expanded,
            decode_moved_elements=absorbed,
            appended_elements=cached,
            is_latent=True,
        )
        if self.index is None:
            return (attended,)
        scores = 2.0 * self.index.num_heads * self.index.head_size
        return (
            attended._replace(
                prefill_flops_per_pair=decode,
                prefill_moved_elements=absorbed,
                window=self.index.top_k,
                keeps_window_only=False,
            ),
            ContextTerm(
                scores, scores, float(self.index.head_size), 1, num_heads=self.index.num_heads
            ),
        )


class CompressedAttention(MixerKind):
    """DeepSeek-V4's mix: a sliding window over tokens plus attention over compressed groups of
    ``compression`` tokens.

    One key-value head of ``head_size`` serves all heads (keys are values). ``compression`` 0 has
    the window only. With an ``index``, the best ``top_k`` compressed entries are attended,
    otherwise all. An entry is a gated sum over its tokens, with a learned position inside the
    group; indexed layers let neighbouring groups overlap, which doubles the width of the sums.
    Shapes after the tensors of DeepSeek-V4-Flash (two sums ``[4096 x 1024]`` and positions ``[4 x
    1024]`` at compression 4, ``[4096 x 512]`` and ``[128 x 512]`` at 128).
    """

    kind: Literal["compressed"]
    num_heads: Width
    head_size: Width
    query_rank: Width
    window: Tokens
    compression: TokenCount = 0
    index: SparseIndex | None = None
    output_groups: Width
    output_rank: Width
    rope_head_size: Width = 64

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.index is not None and not self.compression:
            raise ValueError(
                "index selects among compressed entries, so compression must be above 0"
            )
        if self.num_heads * self.head_size % self.output_groups:
            raise ValueError(
                f"output_groups ({self.output_groups}) must divide num_heads * head_size"
            )
        return self

    @property
    def _overlap(self) -> int:
        return 2 if self.index is not None else 1

    @property
    def _compressed_widths(self) -> tuple[int, ...]:
        """Numbers in a compressed entry, and in its index key."""
        if not self.compression:
            return ()
        return (self.head_size,) if self.index is None else (self.head_size, self.index.head_size)

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        width = self.num_heads * self.head_size
        linears = [
            Linear("query down", hidden_size, self.query_rank, "whole"),
            Linear("query up", self.query_rank, width, "column"),
            Linear("key value", hidden_size, self.head_size, "whole"),
            Linear(
                "output down",
                width // self.output_groups,
                self.output_rank,
                "column",
                self.output_groups,
            ),
            Linear("attention output", self.output_groups * self.output_rank, hidden_size, "row"),
        ]
        if self.compression:
            linears.append(
                Linear("compress", hidden_size, 2 * self._overlap * self.head_size, "whole")
            )
        if self.index is not None:
            linears += [
                Linear(
                    "index query",
                    self.query_rank,
                    self.index.num_heads * self.index.head_size,
                    "whole",
                ),
                Linear(
                    "index compress", hidden_size, 2 * self._overlap * self.index.head_size, "whole"
                ),
                Linear("index weight", hidden_size, self.index.num_heads, "whole"),
            ]
        return tuple(linears)

    def context_terms(self) -> tuple[ContextTerm, ...]:
        pair, cached = 4.0 * self.num_heads * self.head_size, float(self.head_size)
        moved = 2.0 * self.num_heads * self.head_size + cached
        near = ContextTerm(
            pair,
            pair,
            cached,
            1,
            self.window,
            num_heads=self.num_heads,
            prefill_moved_elements=moved,
            decode_moved_elements=moved,
        )
        terms = [near]
        if self.compression:
            top_k = self.index.top_k if self.index else None
            terms.append(
                near._replace(window=top_k, compression=self.compression, keeps_window_only=False)
            )
        if self.index is not None:
            scores = 2.0 * self.index.num_heads * self.index.head_size
            far = ContextTerm(
                scores,
                scores,
                float(self.index.head_size),
                1,
                None,
                self.compression,
                num_heads=self.index.num_heads,
            )
            terms.append(far)
        return tuple(terms)

    def num_small_parameters(self, hidden_size: int) -> int:
        latent_norms = self.query_rank + self.head_size
        compressors = sum(
            width * (self._overlap * self.compression + 1) for width in self._compressed_widths
        )  # positions, norm
        return self.norms + latent_norms + self.num_heads + compressors  # a sink a head

    def state_elements(self) -> int:
        # Values and gates of the tokens that are not compressed yet, the overlapping group
        # included.
        return sum(
            2 * self._overlap**2 * self.compression * width for width in self._compressed_widths
        )
