"""What takes long to make and is asked for again: the last so many of a kind, in one process."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by a key that says everything they hang on; the one asked for longest ago goes first.

    For one thread of one process.

    >>> squares = Recent[int, int](most=2)
    >>> [squares.get(n, lambda n=n: n * n) for n in (1, 2, 1, 3)]
    [1, 4, 1, 9]
    >>> squares.get(1, lambda: 0), squares.get(2, lambda: 0)
    (1, 0)
    """

    def __init__(self, most: int) -> None:
        """Nothing is kept yet.

        Args:
            most: values that are kept, at least 1.
        """
        self._most = most
        self._values: dict[Key, Value] = {}

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of the key, made where it is not kept. What ``make`` raises is raised."""
        value = self._values.pop(key) if key in self._values else make()
        while len(self._values) >= self._most:
            del self._values[next(iter(self._values))]
        self._values[key] = value
        return value
