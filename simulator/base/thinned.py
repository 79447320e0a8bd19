"""Bounded sample of a stream of items."""

from __future__ import annotations

from typing import Generic, TypeVar

Item = TypeVar("Item")


class Thinned(Generic[Item]):
    """Sample of every ``n``-th item added; ``n`` doubles whenever there would be more than
    ``most``.

    >>> kept = Thinned(most=4)
    >>> for number in range(11):
    ...     kept.add(number)
    >>> kept.items
    [0, 4, 8]
    """

    def __init__(self, most: int) -> None:
        self.items: list[Item] = []
        self._most = most
        self._every = 1
        self._added = 0

    def add(self, item: Item) -> None:
        """Add an item, if it is its turn."""
        if self._added % self._every == 0:
            if len(self.items) == self._most:
                self.items = self.items[::2]
                self._every *= 2
            if self._added % self._every == 0:
                self.items.append(item)
        self._added += 1
