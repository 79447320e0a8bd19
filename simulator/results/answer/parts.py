"""The base of the parts of an answer, and the bands of their figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import pandas as pd
from pydantic import ConfigDict, Field, model_validator

from simulator.base.frozen import Frozen


class Band(NamedTuple):
    """The 10th and the 90th percentile of a figure, in its unit."""

    low: float
    high: float

    @property
    def is_wide(self) -> bool:
        """Whether the ends differ, so that the band shows."""
        return self.low < self.high

    def map_ends(self, change: Callable[[float], float]) -> Band:
        """The band of a falling function of the figure, such as time per token of tokens a
        second; an end of 0 becomes infinite, an infinite one 0.

        >>> Band(20.0, 50.0).map_ends(lambda tokens_per_s: 1000 / tokens_per_s)
        Band(low=20.0, high=50.0)
        """
        ends = [
            change(end) if 0 < end < math.inf else math.inf if end == 0 else 0.0 for end in self
        ]
        return Band(*sorted(ends))


def make_band(low: float | None, high: float | None) -> Band | None:
    """The band between two ends; ``None`` where both are unknown. An unknown end is 0 or infinite.

    >>> make_band(1.0, None), make_band(None, None)
    (Band(low=1.0, high=inf), None)
    """
    if low is None and high is None:
        return None
    return Band(0.0 if low is None else low, math.inf if high is None else high)


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


class Part(Frozen):
    """A part of an answer. JSON has no infinite numbers: they are ``None``."""

    model_config = ConfigDict(strict=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_infinite(cls, table: Any) -> Any:
        if not isinstance(table, dict):
            return table
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in table.items()
        }


class Undetermined(Part):
    """A figure that these requests do not determine."""

    what: str
    """The figure in words."""
    figures: dict[str, float] = {}
    """Numbers that disagree, in the units of the answer."""
    text: str = ""
    """The disagreement in words."""
    would: str = ""
    """Change of the question that would determine it."""


_END = Field(description="End of the 80 % band of the figure before _low or _high, in its unit.")


class Banded(Part):
    """A part with figures that have bands: beside ``x`` stand ``x_low`` and ``x_high``, between
    which 80 % of cases lie; ``null`` is an end that there is none of.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float | None, _END]]

    @model_validator(mode="after")
    def _know_figures(self) -> Banded:
        for key in self.__pydantic_extra__:
            if not self.has_figure(key.removesuffix("_low").removesuffix("_high")):
                raise ValueError(f"'{key}' is no figure of {type(self).__name__}")
        return self

    def has_figure(self, name: str) -> bool:
        """Whether a figure of that name may have a band."""
        return name in type(self).model_fields

    def band_of(self, figure: str) -> Band | None:
        """The band of a figure; ``None`` where it has none.

        Args:
            figure: the field's name.
        """
        ends = self.__pydantic_extra__
        return make_band(ends.get(f"{figure}_low"), ends.get(f"{figure}_high"))

    def bands(self) -> Iterable[Band]:
        """Every band that the part has."""
        names = [key[: -len("_low")] for key in self.__pydantic_extra__ if key.endswith("_low")]
        return [band for name in names if (band := self.band_of(name)) is not None]


def has_bands(part: Any) -> bool:
    """Whether a figure anywhere in some parts of an answer has a band whose ends differ."""
    if isinstance(part, Banded) and any(band.is_wide for band in part.bands()):
        return True
    if isinstance(part, Part):
        return any(has_bands(getattr(part, name)) for name in type(part).model_fields)
    if isinstance(part, dict):
        part = tuple(part.values())
    return isinstance(part, tuple | list) and any(has_bands(one) for one in part)


def make_table(parts: Sequence[Part]) -> pd.DataFrame:
    """One row a part, one column a field; fields of inner parts as ``outer.inner``."""
    return pd.json_normalize([part.model_dump(mode="json") for part in parts])
