"""Dispatch of every token to every rank (all-gather), with partial results back (reduce-scatter):
no top-k factor, no skew.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.policies.dispatch import Rows


class AllGather(Frozen):
    """Each rank sends each of its tokens once to each other rank, wherever the token's experts
    are.
    """

    kernels: ClassVar[str] = "collective"
    """Kernels that price it: a library's all-gather and reduce-scatter."""
    sees: ClassVar[str] = "all"

    def copies(self, rank_TK: Ints, source_T: Ints, node_R: Ints) -> Floats:
        tokens_S = np.bincount(source_T, minlength=len(node_R)).astype(np.float64)
        copies_SR = np.repeat(tokens_S[:, None], len(node_R), axis=1)
        np.fill_diagonal(copies_SR, 0.0)
        return copies_SR

    def rows(self, rank_TK: Ints, node_R: Ints) -> Rows:
        num_tokens, top_k = rank_TK.shape
        rank_N = np.tile(np.arange(len(node_R)), num_tokens)
        token_N = np.repeat(np.arange(num_tokens), len(node_R))
        return Rows(
            token_N, rank_N, np.where(rank_TK[token_N] == rank_N[:, None], np.arange(top_k), -1)
        )
