"""Times in logs: ISO 8601, or a number of some unit since 1970 or since the start.

The unit of a number is what the column's name ends in (``arrival_ms``); else what makes it a moment
between 1973 and 5138, since seconds, milliseconds, microseconds and nanoseconds since 1970 lie a
thousand times apart; else seconds.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

RULE = "must be an ISO 8601 time, or a number of seconds, ms, us or ns"
"""Rule that a refused time breaks."""
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_UNITS = {
    "seconds": "s",
    "secs": "s",
    "sec": "s",
    "millis": "ms",
    "milliseconds": "ms",
    "micros": "us",
    "microseconds": "us",
    "nanos": "ns",
    "nanoseconds": "ns",
} | {unit: unit for unit in _PER_SECOND}
_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_EARLIEST_S, _LATEST_S = 1e8, 1e11
"""Seconds since 1970 of 1973 and of 5138."""
_SUFFIX = re.compile(r"(?:[_\s.(]([A-Za-z]+)|(?<=[a-z])([A-Z][a-z]+))\)?$")


def split_unit(name: str) -> tuple[str, str | None]:
    """Split a column's name into the name without its unit, and the unit.

    >>> split_unit("arrival_ms"), split_unit("startTimeNs"), split_unit("created_at")
    (('arrival', 'ms'), ('startTime', 'ns'), ('created_at', None))
    """
    found = _SUFFIX.search(name)
    unit = _UNITS.get((found[1] or found[2]).lower()) if found else None
    return (name[: found.start()], unit) if found and unit else (name, None)


def read_times(values: NDArray[Any], name: str) -> tuple[NDArray[np.float64], str]:
    """Read seconds from any origin, not a number where a value is no time; and describe how they
    were read.

    Args:
        values: texts, numbers or moments (``datetime64``).
        name: name of the column, which may end in a unit.
    """
    numbers = None if values.dtype.kind == "M" else _numbers(values)
    if numbers is None or 2 * np.isfinite(numbers).sum() < len(numbers):
        return _moments(values, name)
    _, unit = split_unit(name)
    known = np.abs(numbers[np.isfinite(numbers)])
    size = float(np.median(known)) if len(known) else 0.0
    since_1970 = next(
        (u for u, rate in _PER_SECOND.items() if _EARLIEST_S <= size / rate < _LATEST_S), None
    )
    is_moment = since_1970 is not None and unit in (None, since_1970)
    unit = unit or since_1970
    how = _WORDS[unit or "s"]
    if is_moment:
        start_s = float(known[0]) / _PER_SECOND[unit or "s"]
        how += f" since 1970, from {np.datetime64(int(start_s), 's')} UTC on"
    elif unit is None:
        how += f"; name it {name}_ms, _us or _ns where it has another unit"
    return _from_first(values, numbers) / _PER_SECOND[unit or "s"], f"{name} read as {how}"


def _from_first(values: NDArray[Any], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count numbers from the first of them on: whole ones exactly, as nanoseconds since 1970 have
    more digits than a floating-point number.
    """
    try:
        whole = values.astype(np.int64)
    except (ValueError, OverflowError):
        known = numbers[np.isfinite(numbers)]
        return numbers - (known[0] if len(known) else 0.0)
    return (whole - whole[:1]).astype(np.float64) if (whole == numbers).all() else numbers


def _numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    import pandas as pd

    return np.asarray(pd.to_numeric(pd.Series(values), errors="coerce"), np.float64)


def _moments(values: NDArray[Any], name: str) -> tuple[NDArray[np.float64], str]:
    import pandas as pd

    times = values
    if values.dtype.kind != "M":
        read = pd.to_datetime(pd.Series(values), format="ISO8601", utc=True, errors="coerce")
        times = read.dt.tz_localize(None).to_numpy()
    ticks = times.astype("datetime64[ns]")
    known = ticks[~np.isnat(ticks)]
    if not len(known):
        return np.full(len(values), np.nan), f"{name} not read as times"
    how = f"times in UTC where no zone is named, from {known[0].astype('datetime64[s]')} on"
    seconds = np.where(np.isnat(ticks), np.nan, (ticks - known[0]).astype(np.int64) / 1e9)
    return seconds, f"{name} read as {how}"
