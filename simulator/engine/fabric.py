"""Wires of the ``rank`` fidelity: the bytes of an exchange are a fluid on each of its links, and
every link is shared equally by the exchanges that have bytes left for it.

An exchange ends when its last link is done, so alone it takes its latency plus its busiest link.
Its messages keep none of its other links waiting for the slowest: ports take messages to many
receivers in turns (processor sharing; Kleinrock, "Queueing Systems" II, 4.4), which is max-min fair
on each link.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event, ProcessGenerator

from simulator.base.jit import jit
from simulator.cost.comm import Exchange


class Wires(Protocol):
    """Transport of exchanges in virtual time."""

    def carry(self, exchange: Exchange) -> Event:
        """Start an exchange; the event succeeds when its last byte has arrived."""
        ...


class FluidWires:
    """Transport of exchanges as fluids, whose rates change when one begins or ends."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self._done: list[Event] = []
        """End of each exchange under way."""
        self._left_FL = np.zeros((0, 0))
        """Seconds that each of them would still need of each link by itself."""
        self._updated_s = 0.0
        self._round = 0

    def carry(self, exchange: Exchange) -> Event:
        """Start an exchange: its latency, then its bytes."""
        if not exchange.busy_s.size or exchange.busy_s.max() == 0.0:
            return self.env.timeout(exchange.latency_s)
        if not self._done and exchange.latency_s == 0.0:
            return self._start(exchange.busy_s)
        return self.env.process(self._start_after_latency(exchange))

    def _start_after_latency(self, exchange: Exchange) -> ProcessGenerator:
        yield self.env.timeout(exchange.latency_s)
        yield self._start(exchange.busy_s)

    def _start(self, busy_s: NDArray[np.float64]) -> Event:
        self._advance()
        done = self.env.event()
        self._done.append(done)
        before = self._left_FL.reshape(-1, busy_s.size)
        self._left_FL = np.concatenate([before, busy_s[None]])
        self._reschedule()
        return done

    def _advance(self) -> None:
        elapsed_s = self.env.now - self._updated_s
        self._updated_s = self.env.now
        if self._done:
            drain_links(self._left_FL, elapsed_s)

    def _reschedule(self) -> None:
        self._round += 1
        if not self._done:
            return
        ends_F = find_ends(self._left_FL)
        first_s = float(ends_F.min())
        due = np.flatnonzero(ends_F <= first_s * (1 + 1e-9))
        self.env.process(self._wake(first_s, due.tolist(), self._round))

    def _wake(self, delay_s: float, due: list[int], round_: int) -> ProcessGenerator:
        """End the exchanges that are due. The remainder is rounding: late in a run the clock cannot
        resolve 10 us to 1e-9 of it.
        """
        yield self.env.timeout(delay_s)
        if round_ != self._round:
            return  # rates have changed since; a later wake-up holds
        self._advance()
        ended = [self._done[place] for place in due]
        self._left_FL = np.delete(self._left_FL, due, axis=0)
        self._done = [done for done in self._done if done not in ended]
        for done in ended:
            done.succeed()
        self._reschedule()


@jit
def find_ends(left_FL: Any) -> Any:
    """Find the seconds until each exchange has no bytes left for any link, if none begins, ``[F]``.

    Args:
        left_FL: seconds that each exchange would still need of each link by itself.
    """
    num_exchanges, num_links = left_FL.shape
    ends_F = np.zeros(num_exchanges)
    for link in range(num_links):
        passed_s, level_s = 0.0, 0.0
        while True:
            least_s, num_sharing = _find_least(left_FL, link, level_s)
            if num_sharing == 0:
                break
            passed_s += (least_s - level_s) * num_sharing
            level_s = least_s
            for place in range(num_exchanges):
                if left_FL[place, link] == level_s:
                    ends_F[place] = max(ends_F[place], passed_s)
    return ends_F


@jit
def drain_links(left_FL: Any, seconds: float) -> None:
    """Let time pass, of which the exchanges that have bytes left for a link get equal parts.

    Args:
        left_FL: seconds that each exchange would still need of each link by itself; changed.
    """
    num_exchanges, num_links = left_FL.shape
    for link in range(num_links):
        time_s, level_s = seconds, 0.0
        while time_s > 0.0:
            least_s, num_sharing = _find_least(left_FL, link, level_s)
            if num_sharing == 0:
                break
            needed_s = (least_s - level_s) * num_sharing
            level_s = least_s if needed_s <= time_s else level_s + time_s / num_sharing
            time_s -= needed_s
        for place in range(num_exchanges):
            left_FL[place, link] = max(left_FL[place, link] - level_s, 0.0)


@jit
def _find_least(left_FL: Any, link: int, above_s: float) -> tuple[float, int]:
    """Find the least of the seconds that exchanges need of a link, and how many need it, among
    those that need more than ``above_s``.
    """
    least_s, num_sharing = np.inf, 0
    for place in range(left_FL.shape[0]):
        if left_FL[place, link] > above_s:
            num_sharing += 1
            least_s = min(least_s, left_FL[place, link])
    return least_s, num_sharing


@jit
def largest(seconds: Any) -> float:
    """Largest value, or 0 of an empty array."""
    found = 0.0
    for value in seconds:
        found = max(found, value)
    return found
