"""Attention over a sliding window and over compressed groups of tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import model_validator

from simulator.base.quantities import IS_LABEL, Groups, Heads, TokenCount, Tokens, Width
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.linear import Linear
from simulator.config.mixers import ContextTerm, Mixer, SparseIndex, count_heads

_INDEXED_COMPRESSION = 4
"""DeepSeek-V4 selects among entries of 4 tokens with an indexer and reads all entries of 128
tokens."""


class CompressedAttention(Mixer):
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
    """Attention over a sliding window and over compressed groups of tokens."""
    num_heads: Heads
    """Number of query heads."""
    head_size: Width
    """Numbers in a query, and in the key-value vector that all heads share."""
    query_rank: Width
    """Numbers in the latent vector that queries are expanded from."""
    window: Tokens
    """Tokens that the sliding window shows."""
    compression: TokenCount = 0
    """Tokens of one compressed entry; 0 = the window only."""
    index: SparseIndex | None = None
    """Indexer that selects among compressed entries; absent = all are attended."""
    output_groups: Groups
    """Number of groups of heads whose outputs are projected down by themselves."""
    output_rank: Width
    """Numbers that each group's output is projected down to."""
    rope_head_size: Annotated[Width, IS_LABEL] = 64
    """Numbers of a head that carry the rotary position."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
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

    @property
    def split_heads(self) -> int:
        return self.num_heads

    def scale_heads(self, factor: float) -> Self:
        """Heads and the queries' and outputs' latent vectors grow; what is cached stays."""
        return self.model_copy(
            update={
                "num_heads": count_heads(self.num_heads, factor, self.output_groups),
                "query_rank": count_heads(self.query_rank, factor),
                "output_rank": count_heads(self.output_rank, factor),
            }
        )

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

    @staticmethod
    def read_config(read: ConfigKeys, layer: str, hidden_size: int) -> Table:
        """The table that the keys of a ``config.json`` describe.

        Args:
            layer: ``"window"``, or ``"compressed-"`` and the tokens of a compressed entry.

        Raises:
            UserError: if a key is missing.
        """
        compression = 0 if layer == "window" else int(layer.rpartition("-")[2])
        table: Table = {
            "kind": "compressed",
            "num_heads": read.size("num_attention_heads"),
            "head_size": read.size("head_dim"),
            "query_rank": read.size("q_lora_rank"),
            "window": read.size("sliding_window"),
            "compression": compression,
            "output_groups": read.size("o_groups"),
            "output_rank": read.size("o_lora_rank"),
            "rope_head_size": read.size("qk_rope_head_dim"),
        }
        if compression == _INDEXED_COMPRESSION:
            table["index"] = SparseIndex.read_config(read)
        return table
