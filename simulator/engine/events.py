"""What is going to happen at known times, the next first: a binary heap in arrays. Compiled.

Events of one instant happen in one order at every fidelity: steps end; prompts that ended leave;
requests come to the first pool, and to the decode pool; caches arrive there; requests come to the
first pool later than they were sent; replicas form steps. Last
come the requests of a closed loop whose clients need no time to send them, which so miss the step
that is formed at the end of another request; replicas that were idle form a step for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simulator.base.jit import jit_inner
from simulator.engine.state import Floats, Ints

ENDS, LEAVES, COMES, GOES_ON, ARRIVES, COMES_LATER, FORMS, RETURNS, FORMS_LATE = range(9)
"""Kinds of events, in their order at one instant: a replica's step ends, a prompt that ended
leaves, a request comes, a request comes to the decode pool, its prompt's cache arrives there, a
request comes to the first pool once more or when the decode pool has room, a replica forms a step,
a request comes from a client that has just got an answer, and a replica forms a step for such
requests."""
KIND_BITS = 40
"""Bits of a code below its kind: the number of a replica or of a request."""


class Events(NamedTuple):
    """A heap."""

    at_s: Floats
    code: Ints
    """Kind and number of each, which order events of one instant."""
    num_left: Ints
    """``[1]`` how many there are."""


def start_events(most: int) -> Events:
    """No event, and room for ``most`` at once."""
    return Events(np.empty(most), np.empty(most, dtype=np.int64), np.zeros(1, dtype=np.int64))


@jit_inner
def code_of(kind: int, number: int) -> int:
    """The code of an event of ``number``."""
    return (kind << KIND_BITS) + number


@jit_inner
def kind_of(code: int) -> int:
    """The kind of an event."""
    return code >> KIND_BITS


@jit_inner
def number_of(code: int) -> int:
    """The replica or request of an event."""
    return code & ((1 << KIND_BITS) - 1)


@jit_inner
def push_event(events: Events, at_s: float, code: int) -> None:
    """Add an event; the caller has made room."""
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
    """Take the events of some codes away, whenever they are. Returns how many there were."""
    count = int(events.num_left[0])
    at_s, code = events.at_s[:count].copy(), events.code[:count].copy()
    kept = np.flatnonzero(~np.isin(code, np.asarray(codes, dtype=np.int64)))
    events.num_left[0] = 0
    for i in kept:
        push_event(events, at_s[i], code[i])
    return count - len(kept)


def find_event(events: Events, code: int) -> float | None:
    """When the event of a code happens; ``None`` if there is none."""
    count = int(events.num_left[0])
    places = np.flatnonzero(events.code[:count] == code)
    return float(events.at_s[places[0]]) if len(places) else None


@jit_inner
def pop_event(events: Events) -> None:
    """Take the next event away."""
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
