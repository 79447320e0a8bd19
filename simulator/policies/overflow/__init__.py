"""Overflow of experts: token-expert pairs that are dropped, since their expert is over its
capacity; one policy in a file.

A dropped token-expert pair does not travel and is not computed: it adds nothing to its token, whose
other experts keep their weights (as Megatron-LM, ``apply_router_token_dropping``). Behind a policy
it is the id, the slot and the rank -1, which every count skips.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class OverflowPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.

    ``drops``, an optional class variable, is false where it never drops anything
    (:func:`may_drop`).
    """

    def keep(
        self, topk_ids_TK: NDArray[np.integer[Any]], source_T: NDArray[np.int64], num_experts: int
    ) -> NDArray[np.bool_]:
        """Choose the token-expert pairs of one MoE layer in one step that are computed.

        Args:
            topk_ids_TK: experts of every token of the step, ``[T, K]``, the ``K`` of a row
                distinct.
            source_T: rank whose router each token passes, ``[T]``; all 0 where every rank has every
                token.
            num_experts: ``E``.

        Returns:
            ``keep_TK``, ``bool [T, K]``. The pairs kept of one rank's tokens must not depend on
                those of other ranks, which a real router does not see.
        """
        ...


def may_drop(policy: OverflowPolicy) -> bool:
    """Whether a policy drops anything at some load."""
    return bool(getattr(policy, "drops", True))
