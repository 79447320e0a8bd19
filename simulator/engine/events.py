"""Queue of future events, the next first: a binary heap in arrays. Compiled.

Events at one instant happen in the same order at every fidelity: steps end; prompts that ended
leave; requests arrive at the first pool, and at the decode pool; caches leave for it, and arrive
there; blocks have been read from tiers of a cache; requests arrive again at the first pool;
replicas form steps. Last come the requests of a closed loop whose clients need no time to send
them, which so miss the step that is formed at the end of another request; idle replicas form a step
for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simulator.base.jit import jit_inner
from simulator.engine.state import Floats, Ints

ENDS, LEAVES, COMES, GOES_ON, SENDS, ARRIVES, IS_READ, COMES_LATER, FORMS, RETURNS, FORMS_LATE = (
    range(11)
)
"""Kinds of events, in their order at one instant: a replica's step ends; a prompt that ended
leaves; a request arrives at the first pool; a request arrives at the decode pool; its prompt's
cache leaves for it, where links are simulated; the cache arrives there; a request's first blocks
have been read from tiers; a request arrives at the first pool again, or once the decode pool has
room; a replica forms a step; a request arrives from a client that has just got an answer; a replica
forms a step for such requests."""
KIND_BITS = 40
"""Bits of an event's code below its kind, which hold the number of a replica or request."""


class Events(NamedTuple):
    """Binary heap of events."""

    at_s: Floats
    code: Ints
    """Time of each event, seconds."""
    """Kind and number of each event, which order events at one instant."""
    num_left: Ints
    """``[1]`` number of events."""


def start_events(most: int) -> Events:
    """Make an empty heap with space for ``most`` events."""
    return Events(np.empty(most), np.empty(most, dtype=np.int64), np.zeros(1, dtype=np.int64))


@jit_inner
def code_of(kind: int, number: int) -> int:
    """Encode an event by its kind and the number of its replica or request."""
    return (kind << KIND_BITS) + number


@jit_inner
def kind_of(code: int) -> int:
    """Kind of an event, from its code."""
    return code >> KIND_BITS


@jit_inner
def number_of(code: int) -> int:
    """Number of an event's replica or request, from its code."""
    return code & ((1 << KIND_BITS) - 1)


@jit_inner
def push_event(events: Events, at_s: float, code: int) -> None:
    """Add an event; the caller has made space."""
    times, codes = events.at_s, events.code
    place = events.num_left[0]
    events.num_left[0] += 1
    while place > 0:
        above = (place - 1) // 2
        if times[above] < at_s or (times[above] == at_s and codes[above] <= code):
            break
        times[place], codes[place] = times[above], codes[above]
        place = above
    times[place], codes[place] = at_s, code


def remove_events(events: Events, codes: Sequence[int]) -> int:
    """Remove the events of some codes, whatever their time. Returns how many there were."""
    count = int(events.num_left[0])
    at_s, code = events.at_s[:count].copy(), events.code[:count].copy()
    kept = np.flatnonzero(~np.isin(code, np.asarray(codes, dtype=np.int64)))
    events.num_left[0] = 0
    for i in kept:
        push_event(events, at_s[i], code[i])
    return count - len(kept)


def find_event(events: Events, code: int) -> float | None:
    """Find the time of the event of a code; ``None`` if there is none."""
    count = int(events.num_left[0])
    places = np.flatnonzero(events.code[:count] == code)
    return float(events.at_s[places[0]]) if len(places) else None


@jit_inner
def pop_event(events: Events) -> None:
    """Remove the next event."""
    times, codes = events.at_s, events.code
    events.num_left[0] -= 1
    count = events.num_left[0]
    at_s, code = times[count], codes[count]
    place = 0
    while True:
        below = 2 * place + 1
        if below >= count:
            break
        other = below + 1
        if other < count and (
            times[other] < times[below]
            or (times[other] == times[below] and codes[other] < codes[below])
        ):
            below = other
        if at_s < times[below] or (at_s == times[below] and code <= codes[below]):
            break
        times[place], codes[place] = times[below], codes[below]
        place = below
    times[place], codes[place] = at_s, code
