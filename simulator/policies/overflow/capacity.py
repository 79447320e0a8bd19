"""Capacity of experts: an expert takes a number of a rank's tokens, the first ones, and drops those
behind them (GShard, Switch).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.base.jit import jit
from simulator.base.quantities import Factor


class Capacity(Frozen):
    """Room for ``ceil(factor x tokens x top_k / num_experts)`` of a rank's own tokens in each
    expert.

    The formula is that of Switch (arXiv:2101.03961, eq. 3) with GShard's ``top_k``, rounded up as
    Megatron-LM does (``moe_expert_capacity_factor``, ``get_capacity`` in ``moe_utils.py``). Tokens
    are those that one router sees, a group of GShard's (arXiv:2006.16668, algorithm 1) and a rank's
    own in Megatron-LM, so that no rank asks the others. Pairs are dropped from the end of the batch
    on (Megatron-LM's ``moe_token_drop_policy = "position"``). Its ``"probs"``, which drops the
    least likely ones, keeps as many of every expert and so loads ranks alike; choices have no
    probabilities here, and those beside a recording are not read.
    """

    factor: Factor
    """Ratio of the room of an expert to its mean load: 1.0 has room for even routing only; Switch
    compares 1.0, 1.25 and 2.0 (table 1)."""

    def keep(
        self, topk_ids_TK: NDArray[np.integer[Any]], source_T: NDArray[np.int64], num_experts: int
    ) -> NDArray[np.bool_]:
        tokens_S = np.bincount(source_T)
        pairs_S = tokens_S * topk_ids_TK.shape[1]
        capacity_S = np.ceil(pairs_S / num_experts * self.factor)
        ids_TK = topk_ids_TK.astype(np.int64)
        return np.asarray(_keep_first(ids_TK, source_T, capacity_S, num_experts))


@jit
def _keep_first(
    topk_ids_TK: NDArray[np.int64],
    source_T: NDArray[np.int64],
    capacity_S: NDArray[np.float64],
    num_experts: int,
) -> NDArray[np.bool_]:
    """Choose the pairs that find room, in the order of tokens."""
    keep_TK = np.zeros(topk_ids_TK.shape, dtype=np.bool_)
    taken_SE = np.zeros((len(capacity_S), num_experts), dtype=np.int64)
    for t in range(topk_ids_TK.shape[0]):
        source = source_T[t]
        for k in range(topk_ids_TK.shape[1]):
            expert = topk_ids_TK[t, k]
            if taken_SE[source, expert] < capacity_S[source]:
                taken_SE[source, expert] += 1
                keep_TK[t, k] = True
    return keep_TK
