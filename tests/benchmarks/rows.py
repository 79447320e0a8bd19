"""What a benchmark finds: rows of figures, and how cost grows with a size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from simulator.base.formats import UNDEFINED, num_bytes, number, seconds


@dataclass(frozen=True)
class Row:
    """One figure, with what was measured in turns with it and what it should be."""

    kind: str
    """The file in ``scenarios`` that measured it."""
    name: str
    """What was run."""
    measure: str
    """What of it was measured."""
    unit: str
    """A key of :data:`UNITS`."""
    value: float | None
    """``None`` where nothing could be measured; the note says why."""
    better: Literal["higher", "lower"] = "lower"
    beside: str = ""
    """What stands beside it."""
    beside_value: float | None = None
    """Its figure, in the same unit."""
    target: float | None = None
    target_of: Literal["value", "ratio"] = "value"
    rounds: int = 1
    """Repetitions that the figure is the median of."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as good the value is as what stands beside it: above 1 it is better."""
        if self.value is None or self.beside_value is None:
            return None
        above, below = (
            (self.value, self.beside_value)
            if self.better == "higher"
            else (self.beside_value, self.value)
        )
        return above / below if below else None

    @property
    def judged(self) -> float | None:
        """What the target is for."""
        return self.value if self.target_of == "value" else self.ratio

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; ``None`` where there is none, or nothing to judge."""
        if self.target is None or self.judged is None:
            return None
        if self.target_of == "ratio" or self.better == "higher":
            return self.judged >= self.target
        return self.judged <= self.target

    def as_dict(self) -> dict[str, Any]:
        """The columns of ``bench.csv``."""
        return {
            "kind": self.kind,
            "name": self.name,
            "measure": self.measure,
            "unit": self.unit,
            "value": self.value,
            "better": self.better,
            "beside": self.beside,
            "beside_value": self.beside_value,
            "ratio": self.ratio,
            "target": self.target,
            "target_of": self.target_of if self.target is not None else "",
            "is_met": self.is_met,
            "rounds": self.rounds,
            "note": self.note,
        }


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

    @property
    def with_target(self) -> list[Row]:
        """Rows that something is asked of."""
        return [row for row in self.rows if row.target is not None]


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


def tell_value(value: float | None, unit: str) -> str:
    """A figure with its unit.

    >>> tell_value(757_000.0, "1/s"), tell_value(1.03e9, "B"), tell_value(0.987, "1")
    ('757,000/s', '1.03 GB', '0.99')
    """
    return UNDEFINED if value is None or math.isnan(value) else UNITS[unit](value)


def tell_ratio(value: float | None) -> str:
    """How many times.

    >>> tell_ratio(12.44), tell_ratio(124.2), tell_ratio(None) == UNDEFINED
    ('12.4x', '124x', True)
    """
    return UNDEFINED if value is None else f"{number(value)}x"


def tell_target(row: Row) -> str:
    """What is asked: at least so much, or at most."""
    if row.target is None:
        return ""
    is_ratio = row.target_of == "ratio"
    asked = tell_ratio(row.target) if is_ratio else tell_value(row.target, row.unit)
    return f"{'≥' if is_ratio or row.better == 'higher' else '≤'} {asked}"


def tell_judged(row: Row) -> str:
    """The figure that the target is for."""
    if row.target_of == "ratio":
        return tell_ratio(row.judged)
    return tell_value(row.judged, row.unit)


def tell_verdict(row: Row) -> str:
    """``met`` or ``missed``."""
    return {True: "met", False: "missed", None: "not judged"}[row.is_met]


def by_kind(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows under the scenario that measured them, in its order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.kind, []).append(row)
    return found
