"""Fewer experts for each token, always or in large steps: the least likely choices are dropped."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.base.quantities import TokenCount, TopK
from simulator.policies.overflow import RoutedTokens


class FewerExperts(Frozen):
    """Tokens use the best ``top_k`` of the experts that they chose, where their router sees more
    than ``above_tokens`` of them.

    That is what a lower ``num_experts_per_tok`` does, except that the experts that are left keep
    their weights. Dropping a token's least likely experts without training costs little quality at
    first (dynamic skipping, arXiv:2402.14800); doing so under load only trades it for speed when
    that is short. Recordings are taken to name a token's experts best first, as engines' kernels
    and ``moesim trace record`` write them.
    """

    best_first: ClassVar[bool] = True
    top_k: TopK
    """Experts of a token."""
    above_tokens: TokenCount = 0
    """Tokens of one router in a step up to which tokens keep all of their experts; a rank's own
    where tokens travel to their experts, all of the step otherwise."""

    def list_jumps(self, *_: int) -> list[int]:
        """The number of tokens above which fewer experts are used."""
        return [self.above_tokens] if self.above_tokens else []

    def admit(self, tokens: RoutedTokens) -> NDArray[np.integer]:
        topk_ids_TK = tokens.ids_TJ[:, : tokens.top_k].copy()
        is_many_T = tokens.tokens_S[tokens.source_T] > self.above_tokens
        topk_ids_TK[is_many_T, self.top_k :] = -1
        return topk_ids_TK
