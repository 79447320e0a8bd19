"""Items that several processes work through, and how many processes there are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from simulator.base.errors import LostError, UserError


def check_count(workers: int | None) -> None:
    """Refuse a number of processes below 1; ``None`` is any.

    Raises:
        UserError: if it is below 1.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")


Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_LOSSES = 2
"""Workers that an item may lose: the second says that it is rather the item's fault."""
_SLOW = 1.5
"""Multiple of the median time, by weight, after which an item has a straggler for a worker, as
Spark has it (``spark.speculation.multiplier`` up to its release 3)."""


@dataclass(frozen=True)
class Taker:
    """Worker that takes items."""

    number: int
    """0 for this process."""
    node: str = ""
    """Machine that it is on."""


class WorkList(Generic[Item, Result]):
    """Items of one parallel map, their assignment to workers, and their results. Used under the
    workers' lock.
    """

    def __init__(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        group: Callable[[Item], Hashable],
        weight: Callable[[Item], float],
        owners: dict[Hashable, set[int]],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.items = items
        self.results: dict[int, Result] = {}
        self.error: BaseException | None = None
        self.function = function
        self._fresh: list[Result] = []
        self._owners = owners
        self._group = group
        self._weights = [weight(item) for item in items]
        self._clock_s = clock_s
        self._tries: dict[int, dict[Taker, float]] = {}
        """Takers of each item that has no result yet, and the time in seconds when they took it."""
        self._losses = Counter[int]()
        self._s_per_weight: list[float] = []
        """Seconds that each item with a result took, by its weight."""
        self._left: dict[Hashable, list[int]] = {}
        for place in sorted(range(len(items)), key=lambda n: -self._weights[n]):
            self._left.setdefault(group(items[place]), []).append(place)

    @property
    def num_left(self) -> int:
        """Items that no worker has begun."""
        return sum(map(len, self._left.values()))

    @property
    def has_fresh(self) -> bool:
        """Whether there are results that :meth:`fresh` has not returned yet."""
        return bool(self._fresh)

    def fresh(self) -> list[Result]:
        """Take the results that came since the last call."""
        found, self._fresh = self._fresh, []
        return found

    def take(self, worker: Taker) -> int | None:
        """Take the next item for a worker: the heaviest of the group with most work left; groups of
        other workers only at the end.
        """
        if not self._left:
            return None

        def is_better(key: Hashable) -> tuple[bool, float]:
            owners = self._owners.get(key)
            return (
                not owners or worker.number in owners,
                sum(self._weights[place] for place in self._left[key]),
            )

        key = max(self._left, key=is_better)
        self._owners.setdefault(key, set()).add(worker.number)
        place = self._left[key].pop(0)
        if not self._left[key]:
            del self._left[key]
        self._tries[place] = {worker: self._clock_s()}
        return place

    def take_again(self, worker: Taker) -> int | None:
        """Take an item that one worker on another machine is slow with, the latest first, where
        none is left that nobody has begun; the first answer counts (Dean & Ghemawat 2004, "backup
        tasks"). This process's own are left: who waits for it gains nothing.
        """
        if self._left or not self._s_per_weight:
            return None
        usual_s, now_s = median(self._s_per_weight), self._clock_s()
        late_s: dict[int, float] = {}
        for place, takers in self._tries.items():
            other, since_s = next(iter(takers.items()))
            over_s = now_s - since_s - _SLOW * usual_s * self._weights[place]
            is_elsewhere = other.number > 0 and other.node != worker.node
            if len(takers) == 1 and is_elsewhere and over_s > 0:
                late_s[place] = over_s
        if not late_s:
            return None
        latest = max(late_s, key=lambda place: late_s[place])
        self._tries[latest][worker] = now_s
        return latest

    def give_back(self, place: int, worker: Taker, why: str, *, was_begun: bool) -> None:
        """Return an item that a lost worker took; another begins it anew, unless one has it or its
        result is there. One that has lost two workers ends the list with an error.

        Args:
            why: the loss, in Ray's words.
            was_begun: whether the worker was working on it.
        """
        self._owners.get(self._group(self.items[place]), set()).discard(worker.number)
        others = self._tries.get(place)
        if others is None or worker not in others:
            return
        del others[worker]
        self._losses[place] += was_begun
        if self._losses[place] >= _MOST_LOSSES:
            self.error = self.error or LostError(
                f"two processes of Ray's were lost with the same piece of work, number {place + 1} "
                f"of {len(self.items)}: {why}; it may need more memory than they have"
            )
        if not others:
            del self._tries[place]
            left = self._left.setdefault(self._group(self.items[place]), [])
            left.append(place)
            left.sort(key=lambda n: -self._weights[n])

    def keep(self, place: int, result: Result, worker: Taker) -> None:
        """Store the first result of an item."""
        takers = self._tries.pop(place, None)
        if takers is None:
            return
        took_s = self._clock_s() - takers[worker]
        self._s_per_weight.append(took_s / self._weights[place] if self._weights[place] else 0.0)
        self.results[place] = result
        self._fresh.append(result)
