"""Links of the ``rank`` fidelity: the bytes of an exchange are a fluid on each of its links, and
every link is shared equally by the exchanges that have bytes left for it.

An exchange ends when its last link is done, so alone it takes its latency plus its busiest link.
Its messages keep none of its other links waiting for the slowest: ports take messages to many
receivers in turns (processor sharing; Kleinrock, "Queueing Systems" II, 4.4), which is max-min fair
on each link.
"""

from __future__ import annotations

import math
from functools import cached_property
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

import numpy as np
import simpy
from simpy.events import Event, ProcessGenerator

from simulator.base.jit import jit
from simulator.cost.comm import Exchange
from simulator.engine.state import Floats
from simulator.policies.topology import Fabric

# Links of the ``message`` fidelity: every message is a process that crosses its links in parcels,
# queueing at each. Exchanges that meet at a link share it fairly.
#
# The reference that the ``rank`` fidelity is tested against. Slow on purpose: at 32 ranks with 64
# tokens each an exchange is 50,000 to 80,000 events.


_PARCELS = 8
"""Fewest parcels that each message of an exchange is cut into. A link serves waiting parcels in
turn, so messages that share it progress together, whatever their sizes, and the last parcel's extra
hops cost an eighth of a message instead of a whole one."""


_LARGEST = 65_536.0
"""Most bytes of a parcel, so that weights of experts on a link hold up a step's tokens for a
microsecond or two. An exchange's largest message sets the number of parcels of all its messages:
with as many for a megabyte as for ten they would end together, as senders of a collective aim
at."""


_TAGS_A_SECOND = 1e15
"""Whole numbers that a second of a tag is divided in, so that tags which differ in their last
digits only are alike, and parcels go first come, first served."""


class _Lane:
    """Queue of one link, which carries one parcel at a time: those of an exchange first come, first
    served, and those of several by turns, in proportion to their seconds (self-clocked fair
    queueing; Golestani, INFOCOM 1994).
    """

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._is_busy = False
        self._waiting: list[tuple[int, int, Event]] = []
        """Heap of the parcels that wait, by tag and by when they came."""
        self._num_come = 0
        self._passed_s = 0.0
        """Tag of the parcel that is carried: seconds that every waiting exchange has had."""
        self._tag_of: dict[int, float] = {}
        """Tag of the last parcel of each exchange."""

    def carry(self, exchange: int, seconds: float) -> ProcessGenerator:
        """Carry a parcel of an exchange, by its number."""
        tag = max(self._passed_s, self._tag_of.get(exchange, 0.0)) + seconds
        self._tag_of[exchange] = tag
        if self._is_busy:
            turn = Event(self._env)
            self._num_come += 1
            heappush(self._waiting, (round(tag * _TAGS_A_SECOND), self._num_come, turn))
            yield turn
        self._is_busy = True
        self._passed_s = tag
        yield self._env.timeout(seconds)
        if self._waiting:
            heappop(self._waiting)[-1].succeed()
        else:
            self._is_busy = False
            self._passed_s = 0.0
            self._tag_of.clear()


class MessageWires:
    """Transport of every message on its own."""

    def __init__(
        self, env: simpy.Environment, fabric: Fabric, beside: MessageWires | None = None
    ) -> None:
        """Begin with idle links.

        Args:
            fabric: paths of the messages.
            beside: links over the same links, whose messages these ones meet there.
        """
        self.env = env
        self.fabric = fabric
        self._lanes: list[_Lane] = beside._lanes if beside else [_Lane(env) for _ in fabric.links]
        self._numbers: count[int] = beside._numbers if beside else count()

    def share(self, fabric: Fabric) -> MessageWires:
        """Let messages of other paths cross the same links."""
        return MessageWires(self.env, fabric, self)

    def carry(self, exchange: Exchange) -> Event:
        """Start all messages of an exchange after its latency."""
        return self.env.process(self._carry(exchange))

    def _carry(self, exchange: Exchange) -> ProcessGenerator:
        yield self.env.timeout(exchange.latency_s)
        if not exchange.busy_s.size:
            return
        fabric = self.fabric.direct if exchange.is_direct else self.fabric
        bytes_L = fabric.sum_by_link(exchange.sent)
        seconds_per_byte_L = np.divide(
            exchange.busy_s, bytes_L, out=np.zeros(len(bytes_L)), where=bytes_L > 0
        )
        bytes_SR, messages, number = exchange.bytes_SR, [], next(self._numbers)
        num_parcels = max(_PARCELS, math.ceil(bytes_SR.max() / _LARGEST))
        for source in range(self.fabric.num_ranks):
            for destination in self._receivers[source]:
                num_bytes = float(bytes_SR[source, destination])
                if num_bytes:
                    path = [int(link) for link in fabric.path_SRH[source, destination] if link >= 0]
                    parcels = num_parcels, num_bytes / num_parcels
                    message = self._message(number, path, parcels, seconds_per_byte_L)
                    messages.append(self.env.process(message))
        yield self.env.all_of(messages)

    @cached_property
    def _receivers(self) -> list[list[int]]:
        """Receivers of each sender in the order in which it serves them: from its own place in its
        own and each following node on, so that senders do not all begin with rank 0.
        """
        node_R = self.fabric.node_R
        nodes = [np.flatnonzero(node_R == node) for node in np.unique(node_R)]
        found = []
        for source in range(self.fabric.num_ranks):
            own = next(n for n, ranks_P in enumerate(nodes) if source in ranks_P)
            place = source - int(nodes[own][0])
            turns = (np.roll(ranks_P, -place) for ranks_P in nodes[own:] + nodes[:own])
            found.append([int(rank) for ranks_P in turns for rank in ranks_P if rank != source])
        return found

    def _message(
        self, number: int, path: list[int], parcels: tuple[int, float], seconds_per_byte_L: Floats
    ) -> ProcessGenerator:
        """Hand the parcels to the first link one after another; each crosses the rest of the path
        by itself.

        Args:
            number: of the exchange.
            parcels: how many there are, and the bytes of one.
        """
        (num_parcels, parcel), arrivals = parcels, []
        first_s = parcel * seconds_per_byte_L[path[0]]
        for _ in range(num_parcels):
            yield from self._lanes[path[0]].carry(number, first_s)
            rest = self._parcel(number, path[1:], parcel, seconds_per_byte_L)
            arrivals.append(self.env.process(rest))
        yield self.env.all_of(arrivals)

    def _parcel(
        self, number: int, path: list[int], num_bytes: float, seconds_per_byte_L: Floats
    ) -> ProcessGenerator:
        for link in path:
            seconds = num_bytes * seconds_per_byte_L[link]
            yield from self._lanes[link].carry(number, seconds)


class Wires(Protocol):
    """Transport of exchanges in virtual time."""

    def carry(self, exchange: Exchange) -> Event:
        """Start an exchange; the event succeeds when its last byte has arrived."""


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

    def share(self, _: Fabric) -> FluidWires:
        """Let exchanges of other paths flow over the same links."""
        return self

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

    def _start(self, busy_s: Floats) -> Event:
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
            self._drain(elapsed_s)

    def _drain(self, seconds: float) -> None:
        drain_links(self._left_FL, seconds)

    def _find_ends(self) -> Floats:
        return np.asarray(find_ends(self._left_FL))

    def _reschedule(self) -> None:
        self._round += 1
        if not self._done:
            return
        ends_F = self._find_ends()
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


def make_wires(env: simpy.Environment, fidelity: str, fabric: Fabric) -> FluidWires | MessageWires:
    """Make idle links of a fidelity that simulates ranks."""
    return FluidWires(env) if fidelity == "rank" else MessageWires(env, fabric)


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
