"""Overflow of experts: token-expert pairs that find no room are dropped or go to another expert;
one policy in a file.

A dropped token-expert pair does not travel and is not computed: it adds nothing to its token, whose
other experts keep their weights (as Megatron-LM, ``apply_router_token_dropping``). Behind a policy
it is the id, the slot and the rank -1, which every count skips. A pair that goes to another expert
counts with the score that the router gave this one.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Ints


class RoutedTokens(NamedTuple):
    """Tokens of one step in one MoE layer, behind their routers."""

    ids_TJ: NDArray[np.integer]
    """Experts of every token, ``[T, J]``, distinct in a row: the ``top_k`` that it chose, then the
    next best ones, as many as the policy asks for (``next_choices``) and the router can choose."""
    rank_TJ: Ints
    """Expert-parallel rank that computes each of them, ``[T, J]``, of the ``num_ranks``."""
    top_k: int
    """Number of experts that each token chose (``K``)."""
    source_T: Ints
    """Rank whose router each token passes, ``[T]``; all 0 where every rank has every token."""
    num_experts: int
    num_ranks: int

    @property
    def tokens_S(self) -> Ints:
        """Tokens that pass the router of each rank, ``[S]``, up to the last one with any."""
        return np.bincount(self.source_T)


def take_choices(
    ids_LTK: NDArray[np.int16], next_LTN: NDArray[np.int16] | None, layer: int, token_T: Ints
) -> NDArray[np.int16]:
    """Look up the experts that tokens chose in a layer, and the next ones where they are known,
    ``ids_TJ``.

    Args:
        token_T: index of each token in ``ids_LTK`` and ``next_LTN``.
    """
    own_TK = ids_LTK[layer, token_T]
    return own_TK if next_LTN is None else np.hstack([own_TK, next_LTN[layer, token_T]])


class OverflowPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.

    All class variables are optional: ``drops`` is false where it never drops anything
    (:func:`may_drop`); ``best_first`` is true where a token's experts must come best first, and
    ``next_choices``, a field or class variable, is the number of next best ones that it asks for
    (:func:`count_next_choices`); ``sees_ranks`` is true where the ranks of choices matter. A method
    ``list_jumps`` lists tokens of one router beyond which more or less is dropped at once
    (:func:`list_jumps`).
    """

    def admit(self, tokens: RoutedTokens) -> NDArray[np.integer]:
        """Choose the experts that compute the tokens of one MoE layer in one step.

        Returns:
            ``topk_ids_TK``, ``[T, K]``: each -1, for a pair that is dropped, or one of its token's
                ``ids_TJ``, distinct in a row. Those of one rank's tokens must not depend on those
                of other ranks, which a real router does not see.
        """
        ...


def may_drop(policy: OverflowPolicy) -> bool:
    """Whether a policy changes anything at some load."""
    return bool(getattr(policy, "drops", True))


def list_jumps(policy: OverflowPolicy, top_k: int, num_experts: int, num_ranks: int) -> list[int]:
    """Tokens of one router beyond which a policy drops more or less at once; none where it does not
    say.
    """
    found = getattr(policy, "list_jumps", None)
    return [] if found is None else list(found(top_k, num_experts, num_ranks))


def count_next_choices(policy: OverflowPolicy) -> int | None:
    """Count the experts behind the chosen ones that a policy asks for; ``None`` where it does not
    ask for the order of experts either.
    """
    count = int(getattr(policy, "next_choices", 0))
    return count if count or getattr(policy, "best_first", False) else None
