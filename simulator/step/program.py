"""A step as a program: what every rank computes and what ranks do together, in order, priced.
Engines execute it in virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cost.comm import Exchange
from simulator.step.expert_prices import ExpertStep


class Busy(NamedTuple):
    """Each rank computes on its own."""

    phase: str
    """One of :data:`simulator.results.tables.STEP_PHASES`."""
    layer: int
    seconds_R: NDArray[np.float64]


class Together(NamedTuple):
    """Groups of ranks meet, exchange data, and go on when theirs has arrived."""

    phase: str
    layer: int
    groups: tuple[tuple[int, ...], ...]
    exchanges: tuple[Exchange, ...]
    """One a group."""


class Start(NamedTuple):
    """Groups of ranks exchange data as in :class:`Together`, but each goes on at once with what
    does not need it.
    """

    phase: str
    layer: int
    groups: tuple[tuple[int, ...], ...]
    exchanges: tuple[Exchange, ...]
    number: int
    """By which :class:`Finish` knows it; unique in a program."""


class Finish(NamedTuple):
    """Each rank waits until what it started has arrived."""

    start: Start


Operation = Busy | Together | Start | Finish


class Sequences(NamedTuple):
    """Sequences of a step, ``[N]`` each."""

    new_N: NDArray[np.int64]
    """New tokens."""
    context_N: NDArray[np.int64]
    """Tokens that are in the cache already."""
    rank_N: NDArray[np.int64]
    """Data-parallel rank."""


@dataclass(frozen=True)
class Batch:
    """What one step computes, one entry a data-parallel rank; a decode is a chunk of one token."""

    new_tokens: tuple[NDArray[np.int64], ...]
    """For each rank, new tokens of every sequence in its step."""
    context_tokens: tuple[NDArray[np.int64], ...]
    """For each rank, tokens of these sequences that are in the cache already."""
    is_decode: tuple[NDArray[np.bool_], ...]
    num_logits: NDArray[np.int64]
    """Sequences of each rank that get an output token from this step."""
    requests: tuple[NDArray[np.int64], ...] = ()
    """For each rank, the numbers of these sequences' requests in the trace; empty where they stand
    for any."""
    domains: tuple[NDArray[np.int64], ...] = ()
    """For each rank, the kinds of text of these requests
    (:attr:`simulator.workload.traces.RequestTrace.domain`), -1 where none is told; empty where they
    stand for any."""

    @cached_property
    def tokens_d(self) -> NDArray[np.int64]:
        """Tokens of each data-parallel rank."""
        return np.array([int(new.sum()) for new in self.new_tokens], dtype=np.int64)

    @cached_property
    def sequences(self) -> Sequences:
        """The sequences of all ranks."""
        counts = [len(new) for new in self.new_tokens]
        return Sequences(
            np.concatenate(self.new_tokens),
            np.concatenate(self.context_tokens),
            np.repeat(np.arange(len(counts)), counts),
        )


class PricedPart(NamedTuple):
    """What runs through the overlapped layers at once, with its routed experts."""

    batch: Batch
    steps: list[ExpertStep]
    """One for each MoE layer."""


class PricedBatch(NamedTuple):
    """A batch whose routed experts are priced."""

    batch: Batch
    parts: tuple[PricedPart, ...]
    """The whole batch, or its halves."""
