"""Many cases on all cores, those that share a plan and a step table one after the other in one
process.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar

from simulator.base.data import cache_lookups
from simulator.base.errors import UserError
from simulator.base.progress import Progress
from simulator.parallel.workers import sweep

Case = TypeVar("Case", bound=Hashable)
Answer = TypeVar("Answer")
_FEWEST_GROUPS = 4
"""Fewer are answered in this process: starting others takes seconds."""


def answer_cases(
    cases: Sequence[Case],
    answer: Callable[[Case], Answer],
    shared: Callable[[Case], Hashable],
    what: str,
    tick: Progress,
) -> dict[Case, Answer | UserError]:
    """``answer`` of each different case, or the error that it raised.

    Args:
        answer: can be pickled.
        shared: what cases of one plan have in common.
        what: is being answered, for ``tick``.
    """
    groups: dict[Hashable, list[Case]] = {}
    for case in dict.fromkeys(cases):
        groups.setdefault(shared(case), []).append(case)
    ordered = sorted(groups.values(), key=len, reverse=True)
    total = sum(map(len, ordered))

    def count(done: int) -> None:
        tick(what, sum(map(len, ordered[:done])), total)

    tick(what, 0, total)
    found = sweep(
        partial(_all, answer), ordered, count, workers=1 if len(ordered) < _FEWEST_GROUPS else None
    )
    return {
        case: one
        for group, ones in zip(ordered, found, strict=True)
        for case, one in zip(group, ones, strict=True)
    }


@cache_lookups()
def _all(answer: Callable[[Case], Answer], cases: Sequence[Case]) -> list[Answer | UserError]:
    found: list[Answer | UserError] = []
    for case in cases:
        try:
            found.append(answer(case))
        except UserError as error:
            found.append(error)
    return found
