"""What a benchmark finds: rows of figures, and how cost grows with a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from simulator.base.formats import num_bytes, number, seconds


@dataclass(frozen=True)
class Row:
    """One figure, and what it should be."""

    kind: str
    """The file in ``scenarios`` that measured it."""
    name: str
    """What was run."""
    measure: str
    """What of it was measured."""
    unit: str
    """A key of :data:`UNITS`."""
    value: float
    better: Literal["higher", "lower"] = "lower"
    target: float | None = None
    rounds: int = 1
    """Repetitions that the figure is the median of."""
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; ``None`` where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        """The columns of ``bench.csv``."""
        return {**asdict(self), "is_met": self.is_met}


@dataclass(frozen=True)
class Growth:
    """CPU seconds over a size."""

    along: str
    """What grows: ``requests``, ``replicas``, ``ranks`` or ``layers``."""
    name: str
    """What is done at each size."""
    sizes: tuple[int, ...]
    cpu_s: tuple[float, ...]
    """Median CPU seconds of each size."""
    rounds: int = 1

    @property
    def exponent(self) -> float:
        """CPU seconds grow as the size to this power."""
        return fit_exponent(self.sizes, self.cpu_s)

    def as_row(self) -> Row:
        """Its exponent among the figures."""
        sizes = f"{self.along}: {', '.join(f'{size:,}' for size in self.sizes)}"
        return Row(
            "growth",
            f"{self.name}, over {self.along}",
            "exponent of CPU time",
            "1",
            self.exponent,
            rounds=self.rounds,
            note=sizes,
        )

    def as_dict(self) -> dict[str, Any]:
        """The points, for ``bench.json``."""
        return {
            "along": self.along,
            "name": self.name,
            "points": [list(point) for point in zip(self.sizes, self.cpu_s, strict=True)],
            "unit": "s",
            "exponent": self.exponent,
            "rounds": self.rounds,
        }


@dataclass
class Bench:
    """Everything that one call of the command finds."""

    made: dict[str, Any]
    """The machine, the versions, the revision, and how it was asked for."""
    rows: list[Row] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)

    def add(self, found: Row | Growth) -> Row:
        """Keep a finding; the row that stands for it."""
        if isinstance(found, Growth):
            self.growths.append(found)
        self.rows.append(row := found.as_row() if isinstance(found, Growth) else found)
        return row


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms of both.

    Raises:
        ValueError: with fewer than two different sizes, or one that is not positive.
    """
    if len(set(sizes)) < 2 or min(*sizes, *values) <= 0:
        raise ValueError("an exponent takes two or more different sizes, and positive values")
    slope, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope)


def _bytes_a_request(value: float) -> str:
    return f"{num_bytes(value)}/request"


UNITS = {
    "1/s": lambda value: f"{number(value)}/s",
    "s": seconds,
    "ns": lambda value: f"{number(value)} ns",
    "B": num_bytes,
    "B/request": _bytes_a_request,
    "event": lambda value: f"{value:,.0f} events",
    "1": lambda value: f"{value:.2f}",
}
"""Units of figures, and how a figure reads."""


def tell_value(value: float, unit: str) -> str:
    """A figure with its unit.

    >>> tell_value(757_000.0, "1/s"), tell_value(1.03e9, "B"), tell_value(0.987, "1")
    ('757,000/s', '1.03 GB', '0.99')
    """
    return UNITS[unit](value)


def tell_target(row: Row) -> str:
    """What is asked, at least so much or at most, and whether it is met."""
    if row.target is None:
        return ""
    sign = "≥" if row.better == "higher" else "≤"
    return f"{sign} {tell_value(row.target, row.unit)}, {'met' if row.is_met else 'missed'}"
