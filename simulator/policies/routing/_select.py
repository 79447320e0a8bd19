"""Choice of a token's experts from random scores, for all synthetic routers, groups included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.config.ffns.moe import MoE

LARGEST_INCLUSION = 0.98
"""Largest share of the tokens that may choose one expert: a router's score is never certain."""

_SMALLEST_SHARE = 1e-9
"""Smallest share of an expert that was never seen, so that ``K`` experts can always be found."""


def inclusion(share_E: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Probability that a token uses each expert, from the experts' shares of all token-expert
    pairs.

    The chances are ``top_k`` times the shares, and sum to ``top_k``. What exceeds
    :data:`LARGEST_INCLUSION` is spread over the other experts in proportion to their shares.

    Args:
        share_E: not negative, any scale; the last axis is the experts.
        top_k: ``K``, experts a token uses.

    >>> inclusion(np.array([3.0, 1.0, 1.0, 1.0]), top_k=2).round(2).tolist()
    [0.98, 0.34, 0.34, 0.34]
    """
    share_E = share_E / share_E.sum(axis=-1, keepdims=True)
    wanted_E: NDArray[np.float64] = top_k * np.maximum(share_E, _SMALLEST_SHARE)
    while True:
        wanted_E = np.minimum(wanted_E, LARGEST_INCLUSION)
        missing = top_k - wanted_E.sum(axis=-1, keepdims=True)
        below_E = np.where(wanted_E < LARGEST_INCLUSION, wanted_E, 0.0)
        room = below_E.sum(axis=-1, keepdims=True)
        if not ((missing > 1e-9 * top_k) & (room > 0)).any():
            return wanted_E
        wanted_E = wanted_E + below_E * np.maximum(missing, 0.0) / np.maximum(room, _SMALLEST_SHARE)


def choose(keys_TE: NDArray[np.float32], moe: MoE, num_ranked: int = 0) -> NDArray[np.int16]:
    """Choose the ``K`` experts with the smallest keys of every token, within the model's group
    limit.

    A key is ``exp(-score)``. With groups, a token first keeps the ``num_limited_groups`` groups
    whose two best scores have the largest sum, then picks its experts among those (DeepSeek-V3,
    arXiv 2412.19437 section 2.1.2); a sum of scores is a product of keys, so no logarithm is
    needed.

    Args:
        keys_TE: positive; smaller is better.
        moe: its top-k and groups.
        num_ranked: experts to choose instead, best first; 0 = ``K`` in no particular order.

    >>> keys = np.array([[0.5, 0.5, 0.1, 9.0]], dtype=np.float32)
    >>> moe = MoE(kind="moe", num_experts=4, top_k=1, intermediate_size=1, num_groups=2)
    >>> choose(keys, moe).tolist()  # expert 2 is the best, but group 0 is the better pair
    [[0]]
    """
    if moe.num_limited_groups == moe.num_groups:
        return _smallest(keys_TE, moe.top_k, num_ranked).astype(np.int16)
    group_size = moe.num_experts // moe.num_groups
    keys_TGe = keys_TE.reshape(len(keys_TE), moe.num_groups, group_size)
    groups_Tg = _smallest(_two_best(keys_TGe), moe.num_limited_groups)
    kept_Tge = np.take_along_axis(keys_TGe, groups_Tg[:, :, None], axis=1)
    picked_TK = _smallest(kept_Tge.reshape(len(keys_TE), -1), moe.top_k, num_ranked)
    group_TK = np.take_along_axis(groups_Tg, picked_TK // group_size, axis=1)
    return (group_TK * group_size + picked_TK % group_size).astype(np.int16)


def _two_best(keys_TGe: NDArray[np.float32]) -> NDArray[np.float32]:
    best_TG: NDArray[np.float32] = keys_TGe.min(axis=2)
    if keys_TGe.shape[2] == 1:
        return best_TG
    rest_TGe = keys_TGe.copy()
    np.put_along_axis(rest_TGe, keys_TGe.argmin(axis=2)[:, :, None], np.inf, axis=2)
    best_TG *= rest_TGe.min(axis=2)
    return best_TG


def _smallest(values_TE: NDArray[np.float32], count: int, num_ranked: int = 0) -> NDArray[np.int64]:
    """Columns of the ``count`` smallest values of every row, in no particular order, or of the
    ``num_ranked`` smallest ones in theirs.
    """
    if num_ranked:
        columns_TK = _smallest(values_TE, num_ranked)
        order_TK = np.take_along_axis(values_TE, columns_TK, axis=1).argsort(axis=1, kind="stable")
        return np.take_along_axis(columns_TK, order_TK, axis=1)
    if count == 1:
        columns_TK = values_TE.argmin(axis=1, keepdims=True)
    else:
        columns_TK = np.argpartition(values_TE, count - 1, axis=1)[:, :count]
    return columns_TK
