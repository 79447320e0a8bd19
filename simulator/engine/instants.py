"""The instants at which SimPy lets something happen, and what comes before what at one of them."""

from __future__ import annotations

from collections.abc import Callable

import simpy
from simpy.events import Event, EventPriority

LAST, CHANGE, AGAIN = EventPriority(2), EventPriority(3), EventPriority(4)
"""Behind everything else that SimPy does at an instant, so that all steps that end then have ended;
behind that, where something changes; and when all of that instant has changed."""


class Instants:
    """Virtual time, and the instants at which the compiled loop is to be looked at."""

    def __init__(self) -> None:
        # As a float, for compiled code would be compiled once more for whole numbers.
        self.env = simpy.Environment(initial_time=0.0)
        self._looks_s: set[float] = set()

    def wait_until(self, at_s: float, priority: EventPriority) -> Event:
        """An event of that instant, or of the present one where that is over."""
        event = Event(self.env)
        event._ok, event._value = True, None
        self.env.schedule(event, priority=priority, delay=max(0.0, at_s - self.env.now))
        return event

    def call_at(self, at_s: float, priority: EventPriority, call: Callable[[], None]) -> None:
        """Have something called at an instant."""
        self.wait_until(at_s, priority).callbacks = [lambda _: call()]

    def look_at(self, at_s: float, look: Callable[[float], None]) -> None:
        """Have the loop looked at when everything else at an instant has happened; once, however
        often it is asked for.
        """
        if at_s in self._looks_s:
            return
        self._looks_s.add(at_s)

        def look_once() -> None:
            self._looks_s.discard(at_s)
            look(at_s)

        self.call_at(at_s, LAST, look_once)
