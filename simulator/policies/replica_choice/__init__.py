"""Choice among the copies of an expert for each of its tokens, one policy in a file."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from simulator.base.arrays import Ints


class Copies(NamedTuple):
    """Copies of the experts of one MoE layer. Behind the last expert is one of a single copy in
    slot -1, which a pair that was dropped (-1) finds.
    """

    slot_EC: Ints
    """Slots of each expert, ``[E + 1, C]``, padded with -1."""
    count_E: Ints
    """Copies of each expert, ``[E + 1]``."""
    rank_P: Ints
    """Expert-parallel rank of each slot, ``[P]``."""
    node_R: Ints
    """Fast domain of each expert-parallel rank, ``[R]``."""

    @property
    def num_ranks(self) -> int:
        """``R``, expert-parallel ranks."""
        return len(self.node_R)


class Origins(NamedTuple):
    """Places of the tokens of a batch before they go to their experts, ``[T]`` each."""

    position_T: Ints
    """Position in the whole batch."""
    source_T: Ints
    """Rank whose router each token passes; all 0 where every rank has every token."""
    rank_T: Ints
    """Expert-parallel rank that each token is on; where every rank has every token, these take
    turns."""


class ReplicaChooser(Protocol):
    """Policy prepared for the copies of one layer."""

    def choose(self, ids_TK: Ints, origins: Origins) -> Ints:
        """Choose the slot of every token-expert pair.

        Args:
            ids_TK: expert of every pair, ``[T, K]``, -1 where it was dropped.

        Returns:
            ``slot_TK``, -1 for a dropped pair. The slots of one source's tokens must not depend on
                those of others, which a real router does not see.
        """
        ...


class ReplicaChoicePolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.

    ``sees_load``, an optional class variable, is true where a slot depends on the other tokens of
    the batch.
    """

    def prepare(self, copies: Copies) -> ReplicaChooser:
        """Prepare the choice among the copies of one layer."""
        ...
