"""Bands of an answer's figures on its page: in words, and as whiskers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from simulator.report import marks
from simulator.results.answer.parts import Band

_BEYOND = 1000.0
"""Times its value at which a whisker without an end stops: far off any plot."""


def band_text(found: Band | None, text: Callable[[float], str]) -> str:
    """A band in words, a unit that both ends have said once; empty where there is none, or where
    both ends read the same.

    >>> band_text(Band(1.0, 2.0), lambda value: f"{value:g} ms")
    '1 to 2 ms'
    >>> band_text(Band(1.0, 1.0), str), band_text(None, str)
    ('', '')
    >>> band_text(Band(1.0, math.inf), str), band_text(Band(0.0, 2.0), str)
    ('1.0 or more', '0.0 to 2.0')
    """
    if found is None:
        return ""
    if math.isinf(found.high):
        return f"{text(found.low)} or more"
    if text(found.low) == text(found.high):
        return ""
    (low, *unit), (high, *other) = text(found.low).split(" ", 1), text(found.high).split(" ", 1)
    return " ".join(
        [low, "to", high, *other] if unit == other else [low, *unit, "to", high, *other]
    )


def whiskers(values: Sequence[float], bands: Sequence[Band | None], colour: str) -> dict[str, Any]:
    """Error bars of a trace: ``error_x`` or ``error_y``; empty where no point has a band.

    Args:
        values: where the points lie on that axis.
        bands: the bands of these; a figure outside its band gets a whisker on one side only.
    """
    if not any(found and found.is_wide for found in bands):
        return {}
    ends = [
        (found.low, min(found.high, _BEYOND * value)) if found else (value, value)
        for value, found in zip(values, bands, strict=True)
    ]
    return marks.whiskers(values, *zip(*ends, strict=True), color=colour, thickness=1.5, width=4)
