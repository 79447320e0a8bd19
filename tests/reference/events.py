"""What happens, and when (decisions 14 and 20)."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What happens, in its order at one instant."""

    STEP_ENDS = 0
    PROMPT_LEAVES = 1
    """A prompt that is computed may leave its pool."""
    COMES = 2
    """A request comes from a client."""
    GOES_ON = 3
    """A request comes to the decode pool."""
    CACHE_ARRIVES = 4
    IS_READ = 5
    """A request has its first blocks from memory below the GPU."""
    COMES_LATER = 6
    """A request comes to the first pool once more, or when there is room in the other."""
    STEP_FORMS = 7
    RETURNS = 8
    """A request comes from a client that got an answer at this instant."""
    STEP_FORMS_LATE = 9
    """A replica forms a step for requests that returned at this instant."""
    CHANGES = 10
    """Replicas stop or start."""
    HAS_CHANGED = 11
    """What they had is sent again."""


class Event(NamedTuple):
    """One thing that happens; of one kind, those of the first pool come before the other's, and
    then those of lower numbers.
    """

    at_s: float
    kind: Kind
    place: int
    """Place of the pool, 0 for the one that requests come to first."""
    number: int
    """Number of the replica or request."""


class Events:
    """What is going to happen."""

    def __init__(self) -> None:
        self._heap: list[Event] = []

    def add(self, at_s: float, kind: Kind, number: int, place: int = 0) -> None:
        """Let something happen."""
        heapq.heappush(self._heap, Event(at_s, kind, place, number))

    @property
    def has_next(self) -> bool:
        """Whether anything is going to happen."""
        return bool(self._heap)

    def take_next(self) -> Event:
        """The next to happen."""
        return heapq.heappop(self._heap)

    def call_off(self, is_off: Callable[[Event], bool]) -> bool:
        """Let some things not happen. Returns whether there were any."""
        left = [event for event in self._heap if not is_off(event)]
        found = len(left) < len(self._heap)
        self._heap = left
        heapq.heapify(left)
        return found
