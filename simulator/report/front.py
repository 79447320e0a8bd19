"""First screen of a page: the answer, cards, figures against their limits, findings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from simulator.report.deployment_tables import split_at_rumours
from simulator.results.answer.parts import Band, band_text
from simulator.results.results_folder import Cell, ResultsFolder, Verdict

_LONGEST = 2.0
"""Length of a track over its largest value or limit, at the most: what of a band lies beyond runs
off it."""
_MARGIN = 1.12
"""Length of a track over its largest value or limit, at the least."""


class Mark(NamedTuple):
    """A figure of a deployment."""

    name: str
    swatch: str
    """CSS of the deployment's patch of colour."""
    value: float
    text: str
    """The value with its unit."""
    band: Band | None = None
    """Ends between which 80 % of cases lie; an infinite one is beyond any limit."""
    band_text: str = ""
    """The band with its unit; empty where it has none."""


def make_mark(
    name: str, swatch: str, value: float, band: Band | None, write: Callable[[float], str]
) -> Mark:
    """A mark whose texts have units."""
    return Mark(name, swatch, value, write(value), band, band_text(band, write))


class Bar(NamedTuple):
    """A mark on its track, in percent of the track's length."""

    mark: Mark
    at: float
    low: float
    high: float
    """Ends of the band, equal where there is none."""
    runs_off: bool
    """Whether the band goes on beyond the track."""


class Gauge(NamedTuple):
    """A figure of each deployment on tracks of one scale that begins at zero."""

    title: str
    marks: Sequence[Mark]
    limit: float | None = None
    limit_text: str = ""
    """Name and value of the line across the tracks."""
    most: float = math.inf
    """The largest value that there can be, such as 1 of a share."""

    @property
    def length(self) -> float:
        """Value at which the tracks end."""
        largest = max([mark.value for mark in self.marks] + [self.limit or 0.0])
        ends = [mark.band[1] for mark in self.marks if mark.band]
        wide = min(max([*ends, _MARGIN * largest]), _LONGEST * largest)
        return min(wide, self.most) or 1.0

    @property
    def limit_at(self) -> float | None:
        """Place of the limit, in percent of the tracks."""
        return None if self.limit is None else self._place(self.limit)

    @property
    def is_flat(self) -> bool:
        """Whether it tells nothing apart: one text, no band, no limit."""
        texts = {mark.text for mark in self.marks}
        has_band = any(mark.band_text for mark in self.marks)
        return len(texts) < 2 and not has_band and self.limit is None and math.isinf(self.most)

    def bars(self) -> Iterator[Bar]:
        """The marks on their tracks."""
        for mark in self.marks:
            low, high = mark.band or (mark.value, mark.value)
            at, start, end = map(self._place, (mark.value, low, high))
            yield Bar(mark, at, start, end, runs_off=high > self.length)

    def _place(self, value: float) -> float:
        return round(100 * min(max(value / self.length, 0.0), 1.0), 2)


def find_doubt(gauges: Sequence[Gauge]) -> Cell | None:
    """The figure whose band is the widest for its size; None where no figure has a band."""
    banded = [
        (high / low if low > 0 else math.inf, gauge, mark)
        for gauge in gauges
        for mark in gauge.marks
        if mark.band_text and mark.band
        for low, high in [mark.band]
    ]
    if not banded:
        return None
    _, gauge, mark = max(banded, key=lambda one: one[0])
    what = gauge.title.partition(",")[0]
    return Cell(mark.band_text, f"in 80 % of cases: {what[0].lower()}{what[1:]} of {mark.name}")


class Reason(NamedTuple):
    """A finding below the cards."""

    pieces: list[tuple[str, bool]]
    """Pieces of its sentence, and whether each is the name of a rumoured model."""
    is_warning: bool
    section: str
    """Section that shows more of it; empty where there is none."""


class Front(NamedTuple):
    """First screen of a page."""

    eyebrow: str
    headline: list[tuple[str, bool]]
    """Pieces of the headline, and whether each is the name of a rumoured model."""
    reasons: list[Reason]
    cards: Mapping[str, Cell]
    """Answers in few words by what they answer."""
    gauges: Sequence[Gauge]

    def lead(self, section: str) -> list[tuple[str, bool]]:
        """The first finding that a section shows more of; nothing where there is none."""
        return next((one.pieces for one in self.reasons if one.section == section), [])


def make_front(
    eyebrow: str,
    verdict: Verdict,
    shown: ResultsFolder | None = None,
    cards: Mapping[str, Cell | None] | None = None,
    gauges: Sequence[Gauge] = (),
) -> Front:
    """Put a first screen together.

    Args:
        eyebrow: line above the headline.
        shown: deployments of which some may be rumoured.
        cards: answers in few words; None where there is none.
        gauges: figures against their limits; those that are empty or tell nothing apart are left
            out.
    """

    def split(sentence: str) -> list[tuple[str, bool]]:
        return [(sentence, False)] if shown is None else split_at_rumours(sentence, shown)

    kinds = verdict.get("findings") or [{} for _ in verdict["reasons"]]
    reasons = [
        Reason(split(said), kind.get("severity") == "warning", kind.get("section", ""))
        for said, kind in zip(verdict["reasons"], kinds, strict=True)
    ]
    known = {
        name: one._replace(text=_hold_units(one.text))
        for name, one in (cards or {}).items()
        if one is not None
    }
    drawn = [gauge for gauge in gauges if gauge.marks and not gauge.is_flat]
    headline = [
        (piece.replace(" %", "\N{NO-BREAK SPACE}%"), is_name)
        for piece, is_name in split(verdict["headline"])
    ]
    return Front(eyebrow, headline, reasons, known, drawn)


def _hold_units(text: str) -> str:
    """A text that breaks no line between a number and its unit."""
    return re.sub(r"(?<=\d) (?=[^\d\s])", "\N{NO-BREAK SPACE}", text)
