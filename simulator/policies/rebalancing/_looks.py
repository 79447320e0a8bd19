"""Looks at regular intervals, each behind a window whose load counts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated, Protocol

from simulator.base.quantities import YEAR_S, Steps, value_range

EverySeconds = Annotated[float, value_range(1e-3, YEAR_S, "seconds")]
"""Seconds from one look to the next."""
EverySteps = Steps | None
"""Steps from one look to the next, instead of seconds; absent = seconds count."""


class _Looks(Protocol):
    @property
    def every_steps(self) -> int | None: ...

    @property
    def model_fields_set(self) -> set[str]: ...


def check_interval(policy: _Looks) -> None:
    """Refuse intervals that are given twice, in steps and in seconds.

    Raises:
        ValueError: if both are there.
    """
    seconds = sorted({"every_s", "window_s"} & policy.model_fields_set)
    if policy.every_steps is not None and seconds:
        raise ValueError(
            f"every_steps counts steps, and {seconds[0]} seconds; leave one of them out"
        )


def list_intervals(every: float, window: float) -> Iterator[float]:
    """Yield the end of every interval, and before it the beginning of its window where that is
    shorter.
    """
    for number in count(1):
        if window < every:
            yield number * every - window
        yield number * every


def begins_window(at: float, every: float) -> bool:
    """Whether a look is at the beginning of a window, not at its end."""
    passed = at % every
    return passed > 1e-9 * every and every - passed > 1e-6
