"""Capacity of experts or of ranks: each takes a number of a rank's tokens, the first ones; those
behind them go to their next choices (No-Token-Left-Behind), or are dropped (GShard, Switch).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.base.jit import jit
from simulator.base.quantities import Factor, value_range
from simulator.policies.overflow import RoutedTokens

_TOLD_ROOM = 32
"""Pairs of room up to which jumps are told: one more is then 3 % of it."""


class Capacity(Frozen):
    """Room for ``ceil(factor x tokens x top_k / num_experts)`` of a rank's own tokens in each
    expert, or for as many times its mean load in each rank.

    The formula is that of Switch (arXiv:2101.03961, eq. 3) with GShard's ``top_k``, rounded up as
    Megatron-LM does (``moe_expert_capacity_factor``, ``get_capacity`` in ``moe_utils.py``). Tokens
    are those that one router sees, a group of GShard's (arXiv:2006.16668, algorithm 1) and a rank's
    own in Megatron-LM, so that no rank asks the others. Pairs are dropped from the end of the batch
    on (Megatron-LM's ``moe_token_drop_policy = "position"``). Its ``"probs"``, which drops the
    least likely ones, keeps as many of every expert and so loads ranks alike.

    In serving, capacity bounds the wait for the busiest rank: Capacity-Aware Inference
    (arXiv:2503.05066) made Mixtral-8x7B 1.85 times as fast where tokens without room could go to
    further experts.
    """

    factor: Factor
    """Ratio of the room of an expert (or a rank) to its mean load: 1.0 has room for even routing
    only; Switch compares 1.0, 1.25 and 2.0 (table 1)."""
    per: Literal["expert", "rank"] = "expert"
    """Holder of the room: each ``"expert"`` with all of its copies, or each expert-parallel
    ``"rank"`` with all of its experts, whose buffers and whose time are bounded by it."""
    next_choices: Annotated[int, value_range(0, 256, "experts")] = 0
    """Number of next best experts that a pair without room may go to, in order, once all tokens
    have tried those they chose (No-Token-Left-Behind, Switch, appendix B); 0 = it is dropped at
    once. Needs a routing that draws experts: a recording has only those that were chosen."""

    @property
    def sees_ranks(self) -> bool:
        """Whether the ranks of choices matter."""
        return self.per == "rank"

    def list_jumps(self, top_k: int, num_experts: int, num_ranks: int) -> list[int]:
        """Tokens of one router beyond which a holder has room for a pair more; up to
        :data:`_TOLD_ROOM` pairs, beyond which one is little.
        """
        holders = num_ranks if self.sees_ranks else num_experts
        if self.factor * (1 if self.sees_ranks else top_k) >= holders:  # room for every pair
            return []
        tokens = np.arange(1, _TOLD_ROOM + 1) * (holders / (top_k * self.factor))
        return list(dict.fromkeys(tokens[tokens >= 1].astype(int).tolist()))

    def admit(self, tokens: RoutedTokens) -> NDArray[np.integer]:
        holders = tokens.num_ranks if self.sees_ranks else tokens.num_experts
        pairs_S = tokens.tokens_S * tokens.top_k
        room_S = np.ceil(pairs_S / holders * self.factor)
        ids_TJ = tokens.ids_TJ.astype(np.int64)
        holder_TJ = tokens.rank_TJ if self.sees_ranks else ids_TJ
        return np.asarray(
            _admit_first(ids_TJ, holder_TJ, tokens.source_T, room_S, holders, tokens.top_k)
        )


@jit
def _admit_first(
    ids_TJ: Ints, holder_TJ: Ints, source_T: Ints, room_S: Floats, num_holders: int, top_k: int
) -> Ints:
    """Choose the experts of pairs in the order of tokens: first those that tokens chose, then the
    next ones for pairs without room.

    Args:
        holder_TJ: expert or rank whose room each choice takes, ``[T, J]``.
        room_S: pairs of a rank's tokens that a holder has room for, ``[S]``.
    """
    num_tokens, num_choices = ids_TJ.shape
    admitted_TK = np.full((num_tokens, top_k), -1, dtype=np.int64)
    taken_SH = np.zeros((len(room_S), num_holders), dtype=np.int64)
    for t in range(num_tokens):
        source = source_T[t]
        for k in range(top_k):
            holder = holder_TJ[t, k]
            if taken_SH[source, holder] < room_S[source]:
                taken_SH[source, holder] += 1
                admitted_TK[t, k] = ids_TJ[t, k]
    if num_choices == top_k:
        return admitted_TK
    for t in range(num_tokens):
        source, choice = source_T[t], top_k
        for k in range(top_k):
            while admitted_TK[t, k] < 0 and choice < num_choices:
                holder = holder_TJ[t, choice]
                if taken_SH[source, holder] < room_S[source]:
                    taken_SH[source, holder] += 1
                    admitted_TK[t, k] = ids_TJ[t, choice]
                choice += 1
    return admitted_TK
