"""Bounded collections of one process: a cache, and a sample of a stream."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Least-recently-used cache, by a key that says everything its values depend on.

    For one thread of one process.

    >>> squares = Recent[int, int](most=2)
    >>> [squares.get(n, lambda n=n: n * n) for n in (1, 2, 1, 3)]
    [1, 4, 1, 9]
    >>> squares.get(1, lambda: 0), squares.get(2, lambda: 0)
    (1, 0)
    """

    def __init__(self, most: int) -> None:
        """Start an empty cache.

        Args:
            most: values that are kept, at least 1.
        """
        self._most = most
        self._values: dict[Key, Value] = {}

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of the key, made where it is not cached. Exceptions of ``make`` pass."""
        value = self._values.pop(key) if key in self._values else make()
        while len(self._values) >= self._most:
            del self._values[next(iter(self._values))]
        self._values[key] = value
        return value

    def clear(self) -> None:
        """Forget all values."""
        self._values.clear()


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
