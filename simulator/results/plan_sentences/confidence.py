"""Sentences on how sure an answer is: its headroom, the band of its cost, and its odds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from simulator.results.answer import Answer, Confidence, RecommendedRow
from simulator.results.formats import TIMES
from simulator.results.plan_text import chance, hourly

ALIKE = 0.005
"""Share by which costs may differ and be the same in words, which have two digits."""
_NEVER = 0.005
"""Probability below which there is none in words, which have whole hundredths."""
_MOST_HEADROOM = 7.9
"""Headroom from which on the search for it stopped."""
_STARTS = 0.95
"""Probability of starting below which that is said before anything else."""


def tell_start(answer: Answer) -> Iterator[str]:
    """A sentence where the memory of a GPU may not do."""
    sure = None if answer.confidence is None else answer.confidence.starts
    if sure is not None and sure < _STARTS:
        yield (
            f"It may not start: that its weights and one of the longest requests fit in a GPU's "
            f"memory has a probability of {chance(sure)}, going by logs of engines."
        )


def tell_headroom(answer: Answer, best: RecommendedRow) -> Iterator[str]:
    """Tell how much more traffic the recommended deployment would carry."""
    factor, traffic = best.headroom, answer.traffic
    if factor is None:
        return
    some = None if traffic is None else traffic.num_on_stretch
    where = f"On the busiest stretch ({some:,} requests) it" if some else "It"
    if best.headroom_is_least:
        more = "" if factor >= _MOST_HEADROOM else "; how much, these requests are too few to tell"
        yield f"{where} would carry {factor:g}{TIMES} this traffic or more{more}."
    elif factor < 1:
        yield f"{where} carries {factor:.2f}{TIMES} this traffic with all targets met."
    elif factor < 1.02:
        yield f"{where} has no headroom: a little more traffic, and a target is missed."
    else:
        band = best.band_of("headroom") or (factor, factor)
        low, high = (f"{end:.2f}{TIMES}" if end else f"under 0.13{TIMES}" for end in band)
        is_wide = low != high and math.isfinite(band[1])
        sure = f"; 80 % band: {low} to {high}" if is_wide else ""
        yield f"{where} would carry {factor:.2f}{TIMES} this traffic with all targets met{sure}."


def tell_confidence(answer: Answer) -> Iterator[str]:
    """The band of the cost, and how likely the first choice is the best."""
    if answer.confidence is not None:
        yield from _tell_cost(answer, answer.confidence)
        yield from _tell_second(answer.confidence)


def _tell_cost(answer: Answer, sure: Confidence) -> Iterator[str]:
    low, high = sure.needed_cost_low, sure.needed_cost_high
    if low is None:
        return
    if high is None:
        ends = f"{hourly(answer, low)} to no cluster within the limits is enough"
    elif abs(high - low) <= ALIKE * abs(low):
        ends = f"{hourly(answer, low)} at both ends"
    else:
        ends = f"{hourly(answer, low)} to {hourly(answer, high)}"
    meets = (
        ""
        if sure.meets_targets is None
        else f"; as it is, it meets every target with a probability of {chance(sure.meets_targets)}"
    )
    yield (
        "Allowing for the simulator's error and other samples of such traffic, the cluster needed "
        f"costs {ends} (80 % band){meets}."
    )


def _tell_second(sure: Confidence) -> Iterator[str]:
    less, same, more = sure.cheaper_than_second, sure.as_dear_as_second, sure.dearer_than_second
    if less is None or same is None or more is None:
        return
    second = f", {sure.second}," if sure.second else ""
    if same > 1 - _NEVER:
        yield (
            f"It costs as much as the second choice{second} whatever the simulator's error; "
            "the order is by what is safer and simpler."
        )
    else:
        yield (
            f"Against the second choice{second} it is cheaper with a probability of "
            f"{chance(less)}, as dear with {chance(same)}, and dearer with {chance(more)}."
        )
