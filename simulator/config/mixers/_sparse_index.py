"""The indexer that selects which entries of a cache are attended."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Heads, Tokens, Width
from simulator.config._config_json import ConfigKeys, Table


class SparseIndex(Frozen):
    """DeepSeek sparse attention: a light indexer scores the context, the best ``top_k`` entries are
    attended.
    """

    num_heads: Heads
    """Number of heads of the indexer."""
    head_size: Width
    """Numbers in a query or key of the indexer."""
    top_k: Tokens
    """Entries that are attended, the best by the indexer's score."""

    @staticmethod
    def read_config(read: ConfigKeys) -> Table:
        """The table that the keys of a ``config.json`` describe."""
        return {
            "num_heads": read.size("index_n_heads"),
            "head_size": read.size("index_head_dim"),
            "top_k": read.size("index_topk"),
        }
