"""Overlap of computation and exchanges: chunks of tokens, and two halves of a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.cost.comm import Exchange
from simulator.step.expert_prices import ExpertStep
from simulator.step.program import Batch, Busy, Finish, Operation, Start, Together


class ChunkedLayer(NamedTuple):
    """Experts and exchanges of one layer in equal chunks."""

    layer: int
    ranks: tuple[int, ...]
    """Ranks that exchange tokens."""
    step: ExpertStep
    num_chunks: int

    def list_operations(self, hidden: Busy | None) -> list[Operation]:
        """List the operations in the order of a GPU's stream.

        Args:
            hidden: computation while the first chunk travels.
        """
        count = self.num_chunks
        out = [self._start("dispatch", chunk) for chunk in range(count)]
        back = [self._start("combine", chunk) for chunk in range(count)]
        found: list[Operation] = self._send(out[0])
        if hidden is not None:
            found.append(hidden)
        found.append(Finish(out[0]))
        for chunk in range(count):
            is_last = chunk == count - 1
            if not is_last:
                found += self._send(out[chunk + 1])
            found.append(Busy("experts", self.layer, self.step.experts_R / count))
            found += self._send(back[chunk])
            if not is_last:
                found.append(Finish(out[chunk + 1]))
        return found + [Finish(one) for one in back]

    def _start(self, phase: Literal["dispatch", "combine"], chunk: int) -> Start:
        exchange = cut_exchange(getattr(self.step, phase), self.num_chunks, chunk)
        number = 2 * self.num_chunks * self.layer + chunk
        number += self.num_chunks * (phase == "combine")
        return Start(phase, self.layer, (self.ranks,), (exchange,), number)

    def _send(self, start: Start) -> list[Operation]:
        """List the start of an exchange, and what its kernels keep from the GPU."""
        held_s = start.exchanges[0].held_s
        return [start, Busy(start.phase, start.layer, np.full(len(self.ranks), held_s))]


def cut_exchange(exchange: Exchange, num_chunks: int, chunk: int) -> Exchange:
    """Cut an exchange into equal chunks, of which the first one has all of its latency. Its kernels
    keep as large a share of each chunk's time from the GPU as of the whole's.
    """
    if num_chunks == 1:
        return exchange
    first = float(chunk == 0)
    part = replace(
        exchange,
        latency_s=exchange.latency_s * first,
        stagger_s=exchange.stagger_s * first,
        busy_s=exchange.busy_s / num_chunks,
        sent=exchange.sent.times(1.0 / num_chunks),
    )
    whole_s, part_s = (one.alone_s - one.stagger_s for one in (exchange, part))
    return replace(part, held_s=exchange.held_s * (part_s / whole_s if whole_s else 0.0))


_HIDDEN = ("dispatch", "combine")
"""Phases of the exchanges that the other half's computation hides."""
Tokens = TypeVar("Tokens", int, NDArray[np.int64])
Value = TypeVar("Value", np.int64, np.bool_)


def halves(batch: Batch) -> tuple[Batch, Batch] | None:
    """Split each rank's tokens into two halves; ``None`` where no rank has two tokens.

    Decodes come before prompts, and the sequence in the middle is cut in two, the second part
    attending to the first (SGLang's two-chunk overlap). The output head is not part of a half, so
    neither has logits.
    """
    if int(batch.tokens_d.max(initial=0)) < 2:
        return None
    orders = [np.argsort(~is_decode, kind="stable") for is_decode in batch.is_decode]
    ordered = _take(batch, orders)
    firsts = [
        np.clip(first_half(int(new.sum())) - (np.cumsum(new) - new), 0, new)
        for new in ordered.new_tokens
    ]
    rests = [new - first for new, first in zip(ordered.new_tokens, firsts, strict=True)]
    seen = [context + first for context, first in zip(ordered.context_tokens, firsts, strict=True)]
    return (
        _take(replace(ordered, new_tokens=tuple(firsts)), [first > 0 for first in firsts]),
        _take(
            replace(ordered, new_tokens=tuple(rests), context_tokens=tuple(seen)),
            [rest > 0 for rest in rests],
        ),
    )


def first_half(num_tokens: Tokens) -> Tokens:
    """Number of tokens in the first half."""
    return num_tokens - num_tokens // 2


def _take(batch: Batch, chosen: Sequence[NDArray[Any]]) -> Batch:
    """Select some sequences of each rank, in some order, without logits."""

    def take(rows: Sequence[NDArray[Value]]) -> tuple[NDArray[Value], ...]:
        return tuple(row[own] for row, own in zip(rows, chosen, strict=True)) if rows else ()

    return Batch(
        take(batch.new_tokens),
        take(batch.context_tokens),
        take(batch.is_decode),
        np.zeros(len(batch.new_tokens), dtype=np.int64),
        take(batch.requests),
        take(batch.domains),
    )


def interleave(first: list[Operation], second: list[Operation]) -> list[Operation]:
    """Merge two programs in turns, a turn ending where a dispatch or combine starts.

    What an exchange's kernels keep from the GPU is spent at its start: hiding an exchange of ``D``
    seconds that holds the share ``h`` behind ``w`` seconds of computation takes ``max(D, w + h
    D)``, whether the share is held throughout or all of it at once.
    """
    left = (deque(first), deque(second))
    under_way: list[Start | None] = [None, None]
    operations: list[Operation] = []
    turn, number = 0, 0
    while left[0] or left[1] or any(under_way):
        begun = under_way[turn]
        if begun is not None:
            operations.append(Finish(begun))
            under_way[turn] = None
        while left[turn]:
            operation = left[turn].popleft()
            if isinstance(operation, Together) and operation.phase in _HIDDEN:
                start = Start(*operation, number=number)
                number += 1
                operations.append(start)
                seconds_R = np.zeros(sum(len(group) for group in start.groups))
                for group, exchange in zip(start.groups, start.exchanges, strict=True):
                    seconds_R[list(group)] = exchange.held_s
                operations.append(Busy(start.phase, start.layer, seconds_R))
                under_way[turn] = start
                break
            operations.append(operation)
        turn = 1 - turn
    return operations
