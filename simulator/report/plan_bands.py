"""Bands of an answer's figures: beside a figure ``x`` may stand ``x_low`` and ``x_high``, between which 80 % of cases lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Band(NamedTuple):
    """The 10th and the 90th percentile of a figure."""

    low: float
    high: float

    def mapped(self, change: Callable[[float], float]) -> Band:
        """In another unit, or upside down.

        >>> Band(20.0, 50.0).mapped(lambda tokens_per_s: 1000 / tokens_per_s)
        Band(low=20.0, high=50.0)
        """
        return Band(*sorted((change(self.low), change(self.high))))


def band(row: Mapping[str, Any], key: str) -> Band | None:
    """The band of a row's figure; None where it has none.

    >>> band({"x": 1.5, "x_low": 1.0, "x_high": 2.0}, "x"), band({"x": 1.5, "x_low": 1.0, "x_high": None}, "x")
    (Band(low=1.0, high=2.0), None)
    """
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return None
    return Band(low, high)


def has_bands(part: Any) -> bool:
    """Whether a figure anywhere in a part of the answer has a band.

    >>> has_bands([{"x": {"y": 1.0, "y_low": 0.5, "y_high": 2.0}}]), has_bands([{"y": 1.0, "y_low": None, "y_high": None}])
    (True, False)
    """
    if isinstance(part, Mapping):
        keys = [key.removesuffix("_high") for key in part if str(key).endswith("_high")]
        return any(band(part, key) for key in keys) or any(has_bands(inner) for inner in part.values())
    return isinstance(part, list) and any(has_bands(inner) for inner in part)


def between(found: Band | None, text: Callable[[float], str]) -> str:
    """A band in words, a unit that both ends have said once; empty where there is none, or where both ends read the same.

    >>> between(Band(1.0, 2.0), lambda value: f"{value:g} ms"), between(Band(1.0, 1.0), str), between(None, str)
    ('1 to 2 ms', '', '')
    """
    if found is None or text(found.low) == text(found.high):
        return ""
    (low, *unit), (high, *other) = text(found.low).split(" ", 1), text(found.high).split(" ", 1)
    return " ".join([low, "to", high, *other] if unit == other else [low, *unit, "to", high, *other])


def whiskers(values: Sequence[float], bands: Sequence[Band | None], colour: str) -> dict[str, Any]:
    """Error bars of a trace: ``error_x`` or ``error_y``; empty where no point has a band.

    Args:
        values: where the points lie on that axis.
        bands: theirs, likewise; a figure outside its band gets a whisker on one side only.
    """
    if not any(bands):
        return {}
    up = [_digits(max(found.high - value, 0.0)) if found else 0.0 for value, found in zip(values, bands, strict=True)]
    down = [_digits(max(value - found.low, 0.0)) if found else 0.0 for value, found in zip(values, bands, strict=True)]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1.5, "width": 4, "color": colour}


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
