"""Caches of experts in a device's fast memory: which experts are worth a slot; one policy in a
file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from simulator.base.arrays import Floats, Ints


class ExpertUses(NamedTuple):
    """Uses of the experts of every MoE layer so far, ``[L, E]`` each."""

    last_LE: Ints
    """Number of the last step that used each expert, from 1; 0 where none did."""
    count_LE: Ints
    """Steps that used each expert."""
    earlier_LE: Floats
    """Tokens that chose each expert in an earlier recording, whose share it is of all."""


class CachingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def rate_experts(self, uses: ExpertUses) -> Floats:
        """Rate how much each expert is worth a slot, ``[L, E]``.

        Behind each step a layer's cache keeps the experts of the highest value among those it held
        and those that were just brought into fast memory; of equal ones the first. A value of 0 or
        less is never kept. It begins with the highest values before the first step.
        """
        ...
