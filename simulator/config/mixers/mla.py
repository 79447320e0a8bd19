"""Multi-head latent attention, whole or over the entries that an indexer selects."""

from __future__ import annotations

from typing import Literal, Self

from simulator.base.quantities import Heads, Width
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.linear import Linear
from simulator.config.mixers import ContextTerm, Mixer, SparseIndex, count_heads


class LatentAttention(Mixer):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): one latent vector a token is
    cached for all heads.

    Prefill expands the latent into keys and values; decode absorbs the expansion into the query and
    reads the latent itself.
    """

    kind: Literal["mla"]
    """Multi-head latent attention."""
    num_heads: Heads
    """Number of heads."""
    query_rank: Width | None = None
    """Numbers in the latent vector that queries are expanded from; absent = a full matrix."""
    kv_rank: Width
    """Numbers in the latent vector that keys and values are expanded from, which is cached."""
    nope_head_size: Width
    """Numbers of a query or key head without a position."""
    rope_head_size: Width
    """Numbers of a query or key head that carry the rotary position."""
    value_head_size: Width
    """Numbers in a value."""
    index: SparseIndex | None = None
    """Indexer that selects the entries to attend (DeepSeek sparse attention); absent = all."""

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

    @property
    def split_heads(self) -> int:
        return self.num_heads

    def scale_heads(self, factor: float) -> Self:
        """Heads and the queries' latent vector grow; the one that is cached stays."""
        rank = self.query_rank and count_heads(self.query_rank, factor)
        heads = count_heads(self.num_heads, factor)
        return self.model_copy(update={"num_heads": heads, "query_rank": rank})

    def context_terms(self) -> tuple[ContextTerm, ...]:
        widths = self.nope_head_size + self.rope_head_size + self.value_head_size
        prefill = 2.0 * self.num_heads * widths
        decode = 2.0 * self.num_heads * (2 * self.kv_rank + self.rope_head_size)
        cached = float(self.kv_rank + self.rope_head_size)
        absorbed = float(self.num_heads * (2 * self.kv_rank + self.rope_head_size))
        attended = ContextTerm(
            prefill,
            decode,
            cached,
            1,
            num_heads=self.num_heads,
            prefill_moved_elements=prefill,
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

    @staticmethod
    def read_config(read: ConfigKeys, layer: str, hidden_size: int) -> Table:
        """The table that the keys of a ``config.json`` describe.

        Raises:
            UserError: if a key is missing, contradicts another or is not understood.
        """
        if read.flag("attention_bias"):
            raise read.error(
                "attention_bias must be false: latent attention with a bias is not understood"
            )
        nope, rope = read.size("qk_nope_head_dim"), read.size("qk_rope_head_dim")
        if read.size_or(nope + rope, "qk_head_dim") != nope + rope:
            raise read.error(
                "contradictory keys: qk_head_dim is not qk_nope_head_dim + "
                f"qk_rope_head_dim = {nope + rope}"
            )
        table: Table = {
            "kind": "mla",
            "num_heads": read.size("num_attention_heads"),
            "kv_rank": read.size("kv_lora_rank"),
            "nope_head_size": nope,
            "rope_head_size": rope,
            "value_head_size": read.size("v_head_dim"),
        }
        if read.find("q_lora_rank") is not None:
            table["query_rank"] = read.size("q_lora_rank")
        if read.find("index_topk") is not None:
            table["index"] = SparseIndex.read_config(read)
        return table
