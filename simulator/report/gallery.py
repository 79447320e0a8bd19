"""Folders of figures, and the figures of a page as cards."""

from __future__ import annotations

import base64
import html
import importlib
import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from types import ModuleType
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.base.findings import Finding
from simulator.base.text import first_line
from simulator.report import style
from simulator.report.style import shorten

Drawn: TypeAlias = go.Figure | dict[str, go.Figure] | None
"""One plot, several by heading (such as one a deployment), or nothing where there is nothing to
show."""
Width: TypeAlias = Literal["full", "half", "quarter", "third"]
"""Width of each plot of a figure on a wide screen; thirds share a row evenly where there are
two."""
Subject = TypeVar("Subject")
"""Subject of a page: the results of a run, an execution, a scoreboard."""


class Figure(ABC, Generic[Subject]):
    """A figure of a page: a public class of a file in the page's folder; files that begin with
    ``_`` hold shared drawing code.
    """

    title: str
    section: str
    """Heading of the part of the page that it belongs to."""
    definition: str
    """Caption: one line that says what is drawn, ending in a full stop."""
    absent: str
    """Line that stands in its place when there is nothing to draw: why."""
    order: int
    """Place on the page; a section stands where its first figure does."""
    width: Width = "half"

    @abstractmethod
    def draw(self, subject: Subject, /) -> Drawn:
        """Draw the figure.

        Trace names become the legend, which the page draws; deployments take their label and colour
        from :mod:`simulator.report.style`; axis titles end in their unit in parentheses,
        unless every tick has it.
        """

    def find(self, _: Subject, /) -> Finding | None:
        """Find what the figure shows, which is its heading; ``None`` where its title is."""
        return None


def load_figures(family: str) -> list[Figure[Any]]:
    """Make every figure of a folder, such as ``"report.figures"``, in the order of its page.

    Raises:
        UserError: if a file defines no figure.
    """
    package = plugins.package_of(family).__name__
    modules = (importlib.import_module(f"{package}.{k}") for k in plugins.available(family))
    return sorted(chain.from_iterable(map(make_figures, modules)), key=lambda one: one.order)


def make_figures(module: ModuleType) -> list[Figure[Any]]:
    """Make the figures that a file defines.

    Raises:
        UserError: if it defines none.
    """
    found = [
        member()
        for name, member in vars(module).items()
        if isinstance(member, type)
        and issubclass(member, Figure)
        and member.__module__ == module.__name__
        and name[0] != "_"
    ]
    if not found:
        raise UserError(
            f"{module.__file__}: must define a public class derived from {__name__}.Figure"
        )
    return found


def plots(figure: Figure[Subject], subject: Subject) -> dict[str, go.Figure]:
    """A figure's plots by heading: empty where there is one plot; none where nothing is to be
    shown.
    """
    drawn = figure.draw(subject)
    if drawn is None:
        return {}
    return drawn if isinstance(drawn, dict) else {"": drawn}


_DIGITS = 10
"""Digits of a number in a plot: no axis shows more, and a page of them takes a fiftieth more bytes
than one of six, which a timeline that begins late would need."""


class Plot(NamedTuple):
    """A plot of a card."""

    anchor: str
    heading: Markup
    """Text above the plot; empty where it needs none."""
    label: str
    """Title and heading for screen readers."""
    height: int
    """Pixels."""


class Key(NamedTuple):
    """An entry of a legend: a button that hides and shows a name in all plots of its card."""

    name: str
    title: str
    label: str
    """The title cut to a phone's width."""
    swatch: str
    """CSS of its patch of colour."""
    is_star: bool


class Absent(NamedTuple):
    """A figure that has nothing to draw, with the reason."""

    title: str
    reason: str


class Card(NamedTuple):
    """A figure with its caption and its legend."""

    title: str
    definition: str
    finding: str
    """Heading above the title; empty where there is none."""
    plots: list[Plot]
    legend: list[Key]
    width: Width
    """Width of each plot on a wide screen."""
    spans_half: bool = False
    """Whether it leaves half of its row to a neighbour."""


class FigureCards:
    """The figures of one page: the cards that its template shows and the payload of its script."""

    def __init__(self) -> None:
        self.plots: list[dict[str, object]] = []
        """Plots as the page's script takes them."""
        self.missing: list[Absent] = []
        """Figures that this subject has nothing to draw for."""
        self.failed: dict[str, str] = {}
        """Errors of figures that could not be drawn, by title: the page is made without them."""

    def card(
        self,
        title: str,
        definition: str,
        drawn: Mapping[str, go.Figure],
        width: Width = "full",
        spans_half: bool = False,
        finding: str = "",
    ) -> Card:
        """Make a card and add its plots to the payload.

        Args:
            drawn: the plots by heading, which is HTML; empty for a plot that needs none.
            width: of each of several plots on a wide screen.
            spans_half: whether the card leaves half of its row to a neighbour.
        """
        shown = [
            Plot(
                self._add(plot),
                Markup(heading),
                ", ".join(filter(None, [title, html.unescape(heading)])),
                int(plot.layout.height or 320),
            )
            for heading, plot in drawn.items()
        ]
        width = width if len(shown) > 1 else "full"
        keys = _list_keys(drawn.values())
        return Card(title, definition, finding, shown, keys, width, spans_half)

    def draw(self, figures: Sequence[Figure[Subject]], subject: Subject) -> dict[str, list[Card]]:
        """Draw figures as cards by section, which stands where its first figure does; those that
        show nothing are :attr:`missing`, and those that raise an error :attr:`failed`.
        """
        by_section: dict[str, list[tuple[Figure[Any], Card]]] = {}
        for figure in figures:
            num_plots = len(self.plots)
            try:
                drawn, found = plots(figure, subject), figure.find(subject)
                card = self.card(
                    figure.title,
                    figure.definition,
                    drawn,
                    figure.width,
                    finding="" if found is None else str(found),
                )
            except Exception as error:  # a figure of the user's own must not lose the results
                del self.plots[num_plots:]
                self.failed[figure.title] = f"{type(error).__name__}: {first_line(error)}"
                said = f"figure '{figure.title}' is not drawn: {self.failed[figure.title]}"
                warnings.warn(said, RuntimeWarning, stacklevel=2)
                continue
            if drawn:
                by_section.setdefault(figure.section, []).append((figure, card))
            else:
                self.missing.append(Absent(figure.title, card.finding or figure.absent))
        return {title: _in_rows(made) for title, made in by_section.items()}

    def _add(self, plot: go.Figure) -> str:
        anchor = f"plot-{len(self.plots)}"
        drawn = json.loads(
            pio.to_json(plot, validate=False), parse_float=_round, object_hook=_unpack
        )
        drawn["layout"].pop("template", None)
        self.plots.append({"id": anchor, "data": drawn["data"], "layout": drawn["layout"]})
        return anchor


def _in_rows(made: Sequence[tuple[Figure[Any], Card]]) -> list[Card]:
    """Cards of one section: two halves share a row, and one without a neighbour takes all of it."""
    is_half = [figure.width == "half" and len(card.plots) == 1 for figure, card in made] + [False]
    cards: list[Card] = []
    is_second = False
    for place, (_, card) in enumerate(made):
        spans_half = is_half[place] and (is_second or is_half[place + 1])
        cards.append(card._replace(spans_half=spans_half))
        is_second = spans_half and not is_second
    return cards


def pair_up(cards: FigureCards, figures: Sequence[tuple[str, str, go.Figure]]) -> list[Card]:
    """Cards of titles, captions and single plots, two to a row; the last of an odd number takes its
    row alone.
    """
    even = len(figures) - len(figures) % 2
    return [
        cards.card(title, definition, {"": drawn}, spans_half=place < even)
        for place, (title, definition, drawn) in enumerate(figures)
    ]


def _list_keys(drawn: Iterable[go.Figure]) -> list[Key]:
    traces = [
        trace
        for plot in drawn
        for trace in plot.data
        if trace.type in ("scatter", "bar") and trace.name and trace.showlegend is not False
    ]
    stars = {t.name for t in traces if t.type == "scatter" and t.marker.symbol == "star"}
    keys: dict[str, Key] = {}
    for trace in traces:
        colour, is_striped = (
            (trace.line.color, trace.line.dash not in (None, "solid"))
            if trace.type == "scatter"
            else (trace.marker.color, bool(trace.marker.pattern.shape))
        )
        title = html.unescape(trace.name)
        swatch = style.swatch(str(colour), is_striped)
        keys.setdefault(
            trace.name,
            Key(trace.name, title, shorten(title, 34), swatch, trace.name in stars),
        )
    return list(keys.values())


def _unpack(found: dict[str, Any]) -> object:
    """Numbers of a typed array as a list: digits that a plot shows take fewer bytes than all
    bits.
    """
    if "bdata" not in found:
        return found
    array = np.frombuffer(base64.b64decode(found["bdata"]), found["dtype"])
    shape = [int(size) for size in str(found.get("shape", array.size)).split(",")]
    if array.dtype.kind != "f":
        return array.reshape(shape).tolist()
    rounded = np.array([_round(value) for value in array.tolist()], object)
    return rounded.reshape(shape).tolist()


def _round(value: float | str) -> float | None:
    """A number with :data:`_DIGITS`; None where it is undefined."""
    rounded = float(f"{float(value):.{_DIGITS}g}")
    return rounded if math.isfinite(rounded) else None
