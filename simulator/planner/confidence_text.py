"""How sure an answer is, in plain sentences: its headroom, the band of its cost, and its odds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.results.formats import TIMES
from simulator.results.plan_text import chance, hourly

ALIKE = 0.005
"""Costs that differ by a smaller share are the same in words."""
_NEVER = 0.005
"""Probabilities below are none in words."""
_MOST_HEADROOM = 7.9
"""From here on the search for the headroom stopped."""


def tell_headroom(answer: dict[str, Any]) -> Iterator[str]:
    """How much more traffic the recommended deployment would carry."""
    best = answer["recommended"]
    room = best.get("headroom")
    if room is None:
        return
    if room >= _MOST_HEADROOM:
        yield f"It would carry 8{TIMES} this traffic or more with all targets met."
    elif room < 1.02:
        yield "It has no headroom: a little more traffic, and a target is missed."
    else:
        low, high = best.get("headroom_low"), best.get("headroom_high")
        ends = None if low is None or high is None else (f"{low:.2f}", f"{high:.2f}")
        sure = (
            f"; 80 % band: {ends[0]}{TIMES} to {ends[1]}{TIMES}"
            if ends and ends[0] != ends[1]
            else ""
        )
        yield f"It would carry {room:.2f}{TIMES} this traffic with all targets met{sure}."


def tell_confidence(answer: dict[str, Any]) -> Iterator[str]:
    """The band of the cost, and how likely the first choice is the best."""
    found = answer.get("confidence") or {}
    low, high, meets = found.get("cost_low"), found.get("cost_high"), found.get("meets_targets")
    if low is not None:
        if high is not None and abs(high - low) <= ALIKE * abs(low):
            said = (
                "80 % band of the cost, from what the simulator may be "
                f"off: {hourly(answer, low)} at both ends"
            )
        else:
            most = (
                "no cluster within the limits is enough" if high is None else hourly(answer, high)
            )
            said = (
                "80 % band of the cost, from what the simulator may be "
                f"off: {hourly(answer, low)} to {most}"
            )
        if meets is not None:
            said += f"; as it is, it meets every target with a probability of {chance(meets)}"
        yield f"{said}."
    share = found.get("beats_second")
    if share is not None:
        second = f", {found['second']}," if found.get("second") else ""
        less = found.get("cheaper_than_second")
        if less is not None and less < _NEVER and share > 1 - _NEVER:
            yield (
                f"It costs as much as the second choice{second} whatever the simulator may be off; "
                "the order is by what is safer and simpler."
            )
        elif less is not None and chance(less) != chance(share):
            yield (
                f"It costs less than the second choice{second} with a probability "
                f"of {chance(less)}, and no more with {chance(share)}."
            )
        else:
            yield (
                f"It costs {'no more' if less is None else 'less'} than the second choice{second} "
                f"with a probability of {chance(share)}."
            )
