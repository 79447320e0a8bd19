"""Two-batch overlap: a step's tokens in two halves, whose programs take turns, one computing while
the other exchanges.

DeepSeek ("DeepSeek-V3 Technical Report", 3.4) and SGLang (``--enable-two-batch-overlap``). The
order is fixed, as it is on a GPU's stream: a half computes until its next exchange starts, then the
other does, and each waits for its own exchange only when its turn has come. All-reduces of
tensor-parallel groups stay in that order, as SGLang leaves them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.step.program import Batch, Busy, Finish, Operation, Start, Together

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
