"""CPU cores that ranks share, where a machine has fewer cores than ranks."""

from __future__ import annotations

import simpy
from simpy.events import Event, ProcessGenerator


class SharedCores:
    """Even sharing of cores by the ranks that compute, none getting more than one, as an operating
    system's scheduler approximates.
    """

    def __init__(self, env: simpy.Environment, num_cores: int) -> None:
        """Begin with idle cores."""
        self._env, self._num_cores = env, num_cores
        self._left: dict[Event, float] = {}
        """Seconds that each computation still needs of a core of its own, by the event of its
        end."""
        self._updated_s = 0.0
        self._round = 0

    def work(self, seconds: float) -> Event:
        """Compute for a rank what takes ``seconds`` on a core of its own."""
        self._advance()
        done = self._env.event()
        self._left[done] = seconds
        self._reschedule()
        return done

    @property
    def _pace(self) -> float:
        """Share of a core that each rank gets."""
        return min(1.0, self._num_cores / max(1, len(self._left)))

    def _advance(self) -> None:
        passed_s = (self._env.now - self._updated_s) * self._pace
        self._updated_s = self._env.now
        self._left = {done: left_s - passed_s for done, left_s in self._left.items()}

    def _reschedule(self) -> None:
        self._round += 1
        if not self._left:
            return
        least_s = max(0.0, min(self._left.values()))
        # What is left of others then is rounding.
        due = [done for done, left_s in self._left.items() if left_s <= least_s * (1 + 1e-9)]
        self._env.process(self._wake(least_s / self._pace, due, self._round))

    def _wake(self, delay_s: float, due: list[Event], round_: int) -> ProcessGenerator:
        yield self._env.timeout(delay_s)
        if round_ != self._round:
            return  # others have begun or ended since; a later wake-up holds
        self._advance()
        for done in due:
            del self._left[done]
            done.succeed()
        self._reschedule()
