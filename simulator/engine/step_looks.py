"""Looks at a pool when the replica of it that has taken most steps has taken some number."""

from __future__ import annotations

from simpy.events import Event

from simulator.engine.instants import CHANGE, Instants
from simulator.engine.loop_state import LoopState
from simulator.engine.state import NEVER


class StepLooks:
    """Numbers of steps that somebody waits for; at most one of each pool."""

    def __init__(self, state: LoopState, instants: Instants) -> None:
        """Begin with none."""
        self._state, self._instants = state, instants
        self._waits: dict[int, Event] = {}
        """Event of each pool that is looked at, by its place; its value is the time."""

    def count(self, place: int) -> int:
        """Count the steps of the replica of a pool that has taken most."""
        return int(self._state.pools[place].clock.counts.num_steps.max())

    def wait_for(self, place: int, num_steps: int) -> Event:
        """Make the event of a pool's replica that has taken more steps than any so far."""
        self._state.pools[place].clock.counts.look_steps[:] = num_steps
        event = self._waits[place] = Event(self._instants.env)
        return event

    def reach(self) -> float:
        """Let the event happen that the loop has stopped for. Returns its time."""
        place, at_s = int(self._state.feed.asks[0]), float(self._state.feed.stopped_s[0])
        self._state.pools[place].clock.counts.look_steps[:] = NEVER
        event = self._waits.pop(place)
        instant = self._instants.wait_until(at_s, CHANGE)
        instant.callbacks = [event.trigger]
        return at_s
