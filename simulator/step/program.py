"""Program of one step: computation of every rank and exchanges between ranks, in order, priced.
Engines execute it in virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cost.comm import Exchange
from simulator.step.expert_prices import ExpertStep


class Busy(NamedTuple):
    """Computation of each rank on its own."""

    phase: str
    """Phase of the step, one of :data:`simulator.results.phases.STEP_PHASES`."""
    layer: int
    seconds_R: NDArray[np.float64]
    """Seconds of each rank, ``[R]``."""


class Together(NamedTuple):
    """Blocking exchange: groups of ranks meet, exchange data, and go on when it has arrived."""

    phase: str
    layer: int
    groups: tuple[tuple[int, ...], ...]
    exchanges: tuple[Exchange, ...]
    """One exchange for each group."""


class Start(NamedTuple):
    """Asynchronous exchange: groups of ranks exchange data as in :class:`Together`, but each goes
    on at once with operations that do not need it.
    """

    phase: str
    layer: int
    groups: tuple[tuple[int, ...], ...]
    exchanges: tuple[Exchange, ...]
    number: int
    """Number by which :class:`Finish` refers to it; unique in a program."""


class Finish(NamedTuple):
    """Wait of each rank until the exchange it started has arrived."""

    start: Start


Operation = Busy | Together | Start | Finish
"""Element of a step's program."""


class Sequences(NamedTuple):
    """Sequences of a step on all ranks, ``[N]`` each."""

    new_N: NDArray[np.int64]
    """New tokens of each sequence."""
    context_N: NDArray[np.int64]
    """Tokens of each sequence that are in the cache already."""
    rank_N: NDArray[np.int64]
    """Data-parallel rank of each sequence."""


@dataclass(frozen=True)
class Batch:
    """Batch of one step, one entry for each data-parallel rank; a decode is a chunk of
    one token.
    """

    new_tokens: tuple[NDArray[np.int64], ...]
    """For each rank, new tokens of every sequence in the step."""
    context_tokens: tuple[NDArray[np.int64], ...]
    """For each rank, tokens of these sequences that are in the cache already."""
    is_decode: tuple[NDArray[np.bool_], ...]
    """For each rank, whether these sequences decode."""
    num_logits: NDArray[np.int64]
    """Sequences of each rank that get an output token from this step."""
    requests: tuple[NDArray[np.int64], ...] = ()
    """For each rank, the numbers of these sequences' requests in the trace; empty where they
    represent any."""
    domains: tuple[NDArray[np.int64], ...] = ()
    """For each rank, the kinds of text of these requests
    (:attr:`simulator.workload.traces.RequestTrace.domain`), -1 where unknown; empty where they
    represent any."""

    def roll(self, num_ranks: int) -> Batch:
        """Move the sequences of each data-parallel rank so many ranks on, those of the last ones to
        the first.
        """

        def move(of_ranks: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
            cut = len(of_ranks) - num_ranks
            return of_ranks[cut:] + of_ranks[:cut]

        return Batch(
            move(self.new_tokens),
            move(self.context_tokens),
            move(self.is_decode),
            np.roll(self.num_logits, num_ranks),
            move(self.requests) if self.requests else (),
            move(self.domains) if self.domains else (),
        )

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
    """Part of a batch that runs through the overlapped layers at once, with its routed experts."""

    batch: Batch
    steps: list[ExpertStep]
    """One priced step of experts for each MoE layer."""


class PricedBatch(NamedTuple):
    """Batch whose routed experts are priced."""

    batch: Batch
    parts: tuple[PricedPart, ...]
    """The whole batch, or its halves."""
