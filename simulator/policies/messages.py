"""Messages between ranks in one exchange, without the pairs that send nothing: a thousand ranks
have a million pairs, of which a step's tokens use some ten thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Floats, Ints
from simulator.base.jit import jit


class ByRank(NamedTuple):
    """Amounts that each rank sends and receives, ``[R]`` each."""

    sent_R: Floats
    received_R: Floats
    sent_across_R: Floats
    """Sent to other nodes."""
    received_across_R: Floats
    """Received from other nodes."""


class Messages(NamedTuple):
    """Messages of one exchange, at most one from each rank to each other one.

    Amounts are a number of units (whole vectors mostly, so that sums are exact in any order) times
    the size of a unit: bytes, or tokens that one stands for.
    """

    num_ranks: int
    source_M: NDArray[np.int32]
    """Rank that sends each message."""
    destination_M: NDArray[np.int32]
    """Rank that receives each message."""
    number_M: Floats
    """Units in each message."""
    unit: float = 1.0
    """Size of a unit."""

    @classmethod
    def empty(cls) -> Messages:
        """Make an exchange without messages and ranks."""
        return cls.from_matrix(np.zeros((0, 0)))

    @classmethod
    def from_matrix(cls, number_SR: Floats) -> Messages:
        """Make one message for each pair of ranks that sends anything, by sender, then receiver."""
        return cls(len(number_SR), *_list_messages(np.ascontiguousarray(number_SR)))

    @classmethod
    def from_pairs(cls, num_ranks: int, number_of: Mapping[tuple[int, int], float]) -> Messages:
        """Make a message for each pair of sender and receiver, in their order."""
        pairs = np.array(sorted(number_of), dtype=np.int32).reshape(-1, 2)
        numbers = np.array([number_of[pair] for pair in sorted(number_of)], dtype=np.float64)
        return cls(num_ranks, pairs[:, 0].copy(), pairs[:, 1].copy(), numbers)

    @property
    def matrix_SR(self) -> Floats:
        """Amount that each rank sends to each other one, ``[R, R]``."""
        number_SR = np.zeros((self.num_ranks, self.num_ranks))
        number_SR[self.source_M, self.destination_M] = self.number_M
        return number_SR * self.unit

    def times(self, factor: float) -> Messages:
        """Scale the units of all messages by ``factor``."""
        source_M, destination_M = self.source_M, self.destination_M
        return Messages(
            self.num_ranks, source_M, destination_M, self.number_M, self.unit * factor
        )  # a third of the time of _replace, for every draw of a table

    def reverse(self) -> Messages:
        """Reverse all messages."""
        source_M, destination_M = self.destination_M, self.source_M
        return Messages(self.num_ranks, source_M, destination_M, self.number_M, self.unit)

    def sum_by_rank(self, node_R: Ints) -> ByRank:
        """Sum the amounts that each rank sends and receives; ``node_R`` is the node of
        each rank.
        """
        return ByRank(*self.list_sums(node_R))

    def list_sums(self, node_R: Ints) -> Floats:
        """Sum the amounts of :class:`ByRank` into one array, ``[4, R]``."""
        sums_4R = _sum_by_rank(self.source_M, self.destination_M, self.number_M, node_R)
        return np.asarray(sums_4R * self.unit)

    def sum_by_link(self, path_SRH: Ints, num_links: int) -> Floats:
        """Sum the amounts that cross each link, ``[links]``; ``path_SRH`` has the links from rank
        to rank, padded with -1.
        """
        found_L = _sum_by_link(
            self.source_M, self.destination_M, self.number_M, path_SRH, num_links
        )
        return np.asarray(found_L * self.unit)


@jit
def _list_messages(number_SR: Floats) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
    num_messages = np.count_nonzero(number_SR)
    # One place more, since a pair that sends nothing is written too, and then written over: a
    # branch that is taken at random takes longer.
    source_M = np.empty(num_messages + 1, dtype=np.int32)
    destination_M = np.empty(num_messages + 1, dtype=np.int32)
    number_M = np.empty(num_messages + 1)
    message = 0
    for source in range(number_SR.shape[0]):
        for destination in range(number_SR.shape[1]):
            number = number_SR[source, destination]
            source_M[message], destination_M[message] = source, destination
            number_M[message] = number
            message += int(number != 0.0)
    return source_M[:-1], destination_M[:-1], number_M[:-1]


@jit
def _sum_by_rank(
    source_M: NDArray[np.int32], destination_M: NDArray[np.int32], number_M: Floats, node_R: Ints
) -> Floats:
    sums_4R = np.zeros((4, len(node_R)))
    for message in range(len(number_M)):
        source, destination = source_M[message], destination_M[message]
        sums_4R[0, source] += number_M[message]
        sums_4R[1, destination] += number_M[message]
        if node_R[source] != node_R[destination]:
            sums_4R[2, source] += number_M[message]
            sums_4R[3, destination] += number_M[message]
    return sums_4R


@jit
def _sum_by_link(
    source_M: NDArray[np.int32],
    destination_M: NDArray[np.int32],
    number_M: Floats,
    path_SRH: Ints,
    num_links: int,
) -> Floats:
    sums_L = np.zeros(num_links)
    for message in range(len(number_M)):
        for link in path_SRH[source_M[message], destination_M[message]]:
            if link >= 0:
                sums_L[link] += number_M[message]
    return sums_L
