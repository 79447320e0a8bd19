"""Instants at which SimPy resumes the run, and their order."""

from __future__ import annotations

from collections.abc import Callable

import simpy
from simpy.events import Event, EventPriority

LAST, CHANGE, AGAIN = EventPriority(2), EventPriority(3), EventPriority(4)
"""Priorities after SimPy's own events of an instant, so that all steps that end then have ended:
for looking at the loop, for changes, and for what follows once all of that instant has changed."""


class Instants:
    """Virtual time, and the instants at which the compiled loop is to run."""

    def __init__(self) -> None:
        # As a float, for compiled code would be compiled once more for whole numbers.
        self.env = simpy.Environment(initial_time=0.0)
        self._looks_s: set[float] = set()

    def wait_until(self, at_s: float, priority: EventPriority) -> Event:
        """Make an event at an instant, or at the present one if that has passed; its value is the
        instant.
        """
        event = Event(self.env)
        event._ok, event._value = True, at_s
        self.env.schedule(event, priority=priority, delay=max(0.0, at_s - self.env.now))
        return event

    def call_at(self, at_s: float, priority: EventPriority, call: Callable[[], None]) -> None:
        """Schedule a call at an instant."""
        self.wait_until(at_s, priority).callbacks = [lambda _: call()]

    def look_at(self, at_s: float, look: Callable[[float], None]) -> None:
        """Schedule a look at the loop after everything else at an instant; once, however often it
        is requested.
        """
        if at_s in self._looks_s:
            return
        self._looks_s.add(at_s)

        def look_once() -> None:
            self._looks_s.discard(at_s)
            look(at_s)

        self.call_at(at_s, LAST, look_once)
