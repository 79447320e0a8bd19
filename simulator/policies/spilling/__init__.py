"""Spilling of excess tokens within a step, with the weights of their experts, to ranks that have
few; one policy in a file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from simulator.base.arrays import Ints


class Spills(NamedTuple):
    """Parts of slots that other ranks compute in one step, ``[X]`` each."""

    slot_X: Ints
    """Slot whose expert's weights travel."""
    rank_X: Ints
    """Expert-parallel rank that they travel to, none twice for a slot and not its own."""
    pairs_X: Ints
    """Token-expert pairs of the slot that this rank computes instead."""


class SpillingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.

    ``spills``, an optional class variable, is false where it never spills anything
    (:func:`may_spill`).
    """

    def spill(self, pairs_P: Ints, rank_P: Ints, num_ranks: int) -> Spills:
        """Choose what is spilled in one MoE layer of one step.

        Args:
            pairs_P: token-expert pairs of every slot, of all ranks' tokens, ``[P]``.
            rank_P: expert-parallel rank of every slot, ``[P]``.
        """
        ...


def may_spill(policy: SpillingPolicy) -> bool:
    """Whether a policy spills anything at some load."""
    return bool(getattr(policy, "spills", True))
