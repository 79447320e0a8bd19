"""Bands of an answer's figures: beside a figure ``x`` may stand ``x_low`` and ``x_high``, between
which 80 % of cases lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

_BEYOND = 1000.0


class Band(NamedTuple):
    """The 10th and the 90th percentile of a figure."""

    low: float
    high: float

    def mapped(self, change: Callable[[float], float]) -> Band:
        """In another unit, or upside down; an end that there is none of stays one.

        >>> Band(20.0, 50.0).mapped(lambda tokens_per_s: 1000 / tokens_per_s)
        Band(low=20.0, high=50.0)
        """
        ends = [
            change(end) if 0 < end < math.inf else math.inf if end == 0 else 0.0 for end in self
        ]
        return Band(*sorted(ends))


def band(row: Mapping[str, Any], key: str) -> Band | None:
    """The band of a row's figure; None where it has none. An end that there is none of is infinite,
    or 0.

    >>> band({"x": 1.5, "x_low": 1.0, "x_high": 2.0}, "x")
    Band(low=1.0, high=2.0)
    >>> band({"x": 1.5, "x_low": 1.0, "x_high": None}, "x")
    Band(low=1.0, high=inf)
    >>> band({"x": 1.5}, "x") is None
    True
    """
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None and high is None:
        return None
    return Band(0.0 if low is None else low, math.inf if high is None else high)


def has_bands(part: Any) -> bool:
    """Whether a figure anywhere in a part of the answer has a band.

    One whose ends are equal does not show.

    >>> has_bands([{"x": {"y": 1.0, "y_low": 0.5, "y_high": 2.0}}])
    True
    >>> has_bands([{"y": 1.0, "y_low": 1.0, "y_high": 1.0}])
    False
    """
    if isinstance(part, Mapping):
        keys = [key.removesuffix("_high") for key in part if str(key).endswith("_high")]
        return any((found := band(part, key)) and found.low < found.high for key in keys) or any(
            has_bands(inner) for inner in part.values()
        )
    return isinstance(part, list) and any(has_bands(inner) for inner in part)


def between(found: Band | None, text: Callable[[float], str]) -> str:
    """A band in words, a unit that both ends have said once; empty where there is none, or where
    both ends read the same.

    >>> between(Band(1.0, 2.0), lambda value: f"{value:g} ms")
    '1 to 2 ms'
    >>> between(Band(1.0, 1.0), str), between(None, str)
    ('', '')
    >>> between(Band(1.0, math.inf), str), between(Band(0.0, 2.0), str)
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
        bands: theirs, likewise; a figure outside its band gets a whisker on one side only.
    """
    if not any(found and found.low < found.high for found in bands):
        return {}
    up = [
        _digits(max(_end(found, value) - value, 0.0)) if found else 0.0
        for value, found in zip(values, bands, strict=True)
    ]
    down = [
        _digits(max(value - found.low, 0.0)) if found else 0.0
        for value, found in zip(values, bands, strict=True)
    ]
    return {
        "type": "data",
        "array": up,
        "arrayminus": down,
        "thickness": 1.5,
        "width": 4,
        "color": colour,
    }


def _end(found: Band, value: float) -> float:
    """Where a whisker ends: one without an end runs off the plot."""
    return found.high if math.isfinite(found.high) else _BEYOND * value


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
