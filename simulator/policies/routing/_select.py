"""Choice of a token's experts from random scores, for all synthetic routers, groups included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.jit import jit_inner
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
    kept_Tge = np.empty((len(keys_TE), moe.num_limited_groups, group_size), dtype=np.float32)
    _keep_groups(keys_TGe, groups_Tg, kept_Tge)
    picked_TK = _smallest(kept_Tge.reshape(len(keys_TE), -1), moe.top_k, num_ranked)
    group_TK = np.take_along_axis(groups_Tg, picked_TK // group_size, axis=1)
    return (group_TK * group_size + picked_TK % group_size).astype(np.int16)


@jit_inner
def _keep_groups(
    keys_TGe: NDArray[np.float32], groups_Tg: NDArray[np.int64], kept_Tge: NDArray[np.float32]
) -> None:
    """Copy the keys of the groups that each token keeps, a group at a time: numpy would look up
    every key by itself.
    """
    for t in range(kept_Tge.shape[0]):
        for place in range(kept_Tge.shape[1]):
            group = groups_Tg[t, place]
            for e in range(kept_Tge.shape[2]):
                kept_Tge[t, place, e] = keys_TGe[t, group, e]


def _two_best(keys_TGe: NDArray[np.float32]) -> NDArray[np.float32]:
    """Product of the two smallest keys of every group, ``[T, G]``; the smallest alone where a group
    has no second.
    """
    product_TG = np.empty(keys_TGe.shape[:2], dtype=np.float32)
    _multiply_two_best(keys_TGe, product_TG)
    return product_TG


@jit_inner
def _multiply_two_best(keys_TGe: NDArray[np.float32], product_TG: NDArray[np.float32]) -> None:
    """Write the products in one pass: five of numpy's over arrays as large took a fourth of
    drawing.
    """
    for t in range(keys_TGe.shape[0]):
        for group in range(keys_TGe.shape[1]):
            best = second = np.float32(np.inf)
            for key in keys_TGe[t, group]:
                second = min(second, max(best, key))
                best = min(best, key)
            product_TG[t, group] = best if keys_TGe.shape[2] == 1 else best * second


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
