"""Renaming of ranks so that a new placement moves as few experts as possible."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from simulator.policies.placement import Placed


def keep_where_alike(before: Placed, after: Placed) -> Placed:
    """Give each rank the new set of experts that it has most of, layer by layer: ranks are alike,
    so loads are the same, and fewer weights travel. The pairing is optimal (the assignment problem,
    Kuhn 1955).

    A layer whose ranks have different numbers of slots stays as it is.
    """
    rank_LP = after.rank_LP.copy()
    for layer, (expert_P, rank_P) in enumerate(zip(after.expert_LP, after.rank_LP, strict=True)):
        if len(set(np.bincount(rank_P, minlength=after.num_ranks).tolist())) > 1:
            continue
        has_RE = _list_holders(before.expert_LP[layer], before.rank_LP[layer], after.num_ranks)
        wants_RE = _list_holders(expert_P, rank_P, after.num_ranks)
        num_experts = max(has_RE.shape[1], wants_RE.shape[1])
        shared_RR = _pad(wants_RE, num_experts) @ _pad(has_RE, num_experts).T
        new_R, old_R = linear_sum_assignment(shared_RR, maximize=True)
        name_R = np.empty(after.num_ranks, dtype=np.int64)
        name_R[new_R] = old_R
        rank_LP[layer] = name_R[rank_P]
    order_LP = np.argsort(rank_LP, axis=1, kind="stable")
    return Placed(
        np.take_along_axis(after.expert_LP, order_LP, axis=1),
        np.take_along_axis(rank_LP, order_LP, axis=1),
        after.num_ranks,
    )


def _list_holders(
    expert_P: NDArray[np.int64], rank_P: NDArray[np.int64], num_ranks: int
) -> NDArray[np.int64]:
    """Whether each rank has each expert, 0 or 1, ``[R, E]``."""
    has_RE = np.zeros((num_ranks, int(expert_P.max()) + 1), dtype=np.int64)
    has_RE[rank_P, expert_P] = 1
    return has_RE


def _pad(has_RE: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    return np.pad(has_RE, ((0, 0), (0, num_experts - has_RE.shape[1])))
