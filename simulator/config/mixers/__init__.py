"""Sequence mixers: the half of a layer that looks at other tokens (attention, linear attention,
state space), one kind a file.

What a kind says of itself is exact: the matrices every token passes through
(:class:`~simulator.config.linear.Linear`), what looking back at the context costs and stores
(:class:`ContextTerm`), and the fixed state a sequence carries (recurrent layers). Whoever needs to
know something of a mixer asks it; nobody looks at its class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

from simulator.base.frozen import Frozen
from simulator.base.quantities import Heads, Parameters, Tokens, Width
from simulator.config._config_json import ConfigKeys, Table
from simulator.config.linear import Linear


class ContextTerm(NamedTuple):
    """Read of earlier tokens by a layer. A (query, key) *pair* is one query token looking at one
    cached entry.
    """

    prefill_flops_per_pair: float
    decode_flops_per_pair: float
    cached_elements_per_entry: float
    """Numbers kept in the KV cache for one entry."""
    num_shards: int
    """Ranks the cached entry can be split over; more tensor-parallel ranks than this hold copies
    (KV heads; 1 for MLA)."""
    window: int | None = None
    """A query sees at most this many entries; ``None`` sees all."""
    compression: int = 1
    """Tokens of context per cached entry."""
    keeps_window_only: bool = True
    """Whether entries that left the window are also dropped from the cache (false where any may be
    selected again)."""
    num_heads: int = 0
    """Query heads that look: each has a score for every pair."""
    prefill_moved_elements: float = 0.0
    """Numbers that the kernel reads or writes for a new token beside the cache: queries, outputs,
    keys and values before they are cached. Split over tensor-parallel ranks."""
    decode_moved_elements: float = 0.0
    appended_elements: float = 0.0
    """Numbers of a new token's key that the kernel writes into the cache (and as many of its value
    where there is one)."""
    is_latent: bool = False
    """Whether the entry is one latent vector for all heads (MLA)."""


class KVHeads(NamedTuple):
    """Heads whose keys and values are cached side by side."""

    number: int
    size: int
    """Numbers in a key, and in a value."""


class Mixer(Frozen, ABC):
    """Base of every kind of mixer; the name of a kind's file is its ``kind``."""

    norms: Parameters = 0
    """Number of norm weights that the kind does not imply (norms on queries and keys, a norm behind
    the mixer)."""
    kind: str
    """Kind of mixer."""

    @abstractmethod
    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices that every token passes through."""

    @property
    @abstractmethod
    def split_heads(self) -> int:
        """Heads that tensor parallelism divides among its ranks, which must come out even."""

    @property
    def kv_heads(self) -> KVHeads | None:
        """Heads of the KV cache that engines choose their attention kernels by; ``None`` for a
        cache that all query heads share, and for a state.
        """
        return None

    def scale_heads(self, factor: float) -> Self:
        """Mixer with ``factor`` times as many heads of the same size, for a model that is so much
        wider; one that has its own way of growing says so, others stay as they are.
        """
        return self

    def context_terms(self) -> tuple[ContextTerm, ...]:
        """Costs of attention over the context; empty for a layer that carries a fixed state
        instead.
        """
        return ()

    @property
    def is_latent(self) -> bool:
        """Whether a cached entry is one latent vector for all heads (MLA)."""
        return any(term.is_latent for term in self.context_terms())

    def num_small_parameters(self, hidden_size: int) -> int:
        """Parameters outside matrices: biases, norms, convolutions, decay rates."""
        return self.norms

    def state_elements(self) -> int:
        """Numbers of recurrent state that each sequence carries, whatever its length."""
        return 0

    def recurrent_flops_per_token(self) -> float:
        """FLOPs to update and read the recurrent state and the convolution for one token, as decode
        does it.
        """
        return 0.0

    def num_parameters(self, hidden_size: int) -> int:
        """Number of parameters of the mixer, without the layer's own norm."""
        return sum(
            linear.num_parameters for linear in self.linears(hidden_size)
        ) + self.num_small_parameters(hidden_size)


def count_heads(heads: int, factor: float, groups: int = 1) -> int:
    """Scaled number of heads: a multiple of ``groups``, and of 8 where ``heads`` is one, so that
    tensor parallelism still divides them.

    >>> count_heads(32, 1.53, 8), count_heads(32, 0.05, 8), count_heads(6, 1.4)
    (48, 8, 8)
    """
    step = math.lcm(groups, math.gcd(heads, 8))
    return max(round(heads * factor / step), 1) * step


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
