"""Dispatch by DeepEP as engines run it: low-latency kernels for few tokens on a rank, normal ones
for many (SGLang's ``--deepep-mode auto``).
"""

from __future__ import annotations

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.base.quantities import TokenBudget
from simulator.policies.dispatch import DispatchPolicy, Rows
from simulator.policies.dispatch.per_expert import PerExpert
from simulator.policies.dispatch.per_node import PerNode


class DeepepAuto(Frozen):
    """One copy an expert while the mean rank has at most ``low_latency_tokens``, and one a node
    (forwarded inside it) beyond.

    Engines look at what a step holds (decodes, or prompts too), not at each rank, so the fullest
    rank does not decide.
    """

    low_latency_tokens: TokenBudget = 128
    """Tokens of each rank for each expert that the buffer of low-latency kernels holds; 128 is
    SGLang's default."""

    @property
    def limits(self) -> tuple[int, ...]:
        """Most tokens of the mean rank for low-latency kernels."""
        return (self.low_latency_tokens,)

    def policy_for(self, tokens: int) -> DispatchPolicy:
        return PerExpert() if tokens <= self.low_latency_tokens else PerNode()

    def copies(self, rank_TK: Ints, source_T: Ints, node_R: Ints) -> Floats:
        return self.policy_for(-(-len(source_T) // len(node_R))).copies(rank_TK, source_T, node_R)

    def rows(self, rank_TK: Ints, node_R: Ints) -> Rows:
        # Refuses what cannot be executed, however few tokens there are.
        rows = PerNode().rows(rank_TK, node_R)
        if len(rank_TK) <= self.low_latency_tokens:
            return PerExpert().rows(rank_TK, node_R)
        return rows
