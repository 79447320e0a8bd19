"""Items that several processes work through: assignment to workers, and results."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    ) -> None:
        self.items = items
        self.results: dict[int, Result] = {}
        self.error: BaseException | None = None
        self.function = function
        self._fresh: list[Result] = []
        self._owners = owners
        self._group = group
        self._weights = [weight(item) for item in items]
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

    def take(self, worker: int) -> int | None:
        """Take the next item for a worker: the heaviest of the group with most work left; groups of
        other workers only at the end.
        """
        if not self._left:
            return None

        def is_better(key: Hashable) -> tuple[bool, float]:
            owners = self._owners.get(key)
            return (
                not owners or worker in owners,
                sum(self._weights[place] for place in self._left[key]),
            )

        key = max(self._left, key=is_better)
        self._owners.setdefault(key, set()).add(worker)
        place = self._left[key].pop(0)
        if not self._left[key]:
            del self._left[key]
        return place

    def give_back(self, place: int, worker: int) -> None:
        """Return an item that a lost worker took; another begins it anew."""
        key = self._group(self.items[place])
        self._owners.get(key, set()).discard(worker)
        left = self._left.setdefault(key, [])
        left.append(place)
        left.sort(key=lambda n: -self._weights[n])

    def keep(self, place: int, result: Result) -> None:
        """Store the result of an item."""
        self.results[place] = result
        self._fresh.append(result)
