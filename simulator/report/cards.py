"""Figures as cards on a page: their headings, their legends, and what the page's script needs to
draw them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from simulator.report import style
from simulator.report.gallery import Figure, Subject, plots
from simulator.report.markup import Markup, join, tag


class Cards:
    """The cards of one page."""

    def __init__(self) -> None:
        self.payload: dict[str, Any] = {"templates": style.TEMPLATES, "plots": []}

    def card(
        self,
        title: str,
        definition: str,
        found: Mapping[str, go.Figure],
        width: str = "full",
        spans_half: bool = False,
    ) -> Markup:
        """A card with its figures, which are added to what the page's script draws.

        Args:
            found: the plots by heading, which is HTML; empty for a plot that needs none.
            width: of each plot on a wide screen: full, half, third or quarter.
            spans_half: whether the card leaves half of its row to a neighbour.
        """
        cells = []
        for heading, plot in found.items():
            height = int(plot.layout.height or 320)
            said = ", ".join(filter(None, [title, html.unescape(heading)]))
            holder = tag(
                "div",
                id=self._add(plot),
                class_="plot",
                style=f"height:{height}px",
                role="img",
                aria_label=said,
            )
            above = [tag("h4", Markup(heading))] if heading else []
            cells.append(tag("div", *above, holder, class_="cell"))
        return tag(
            "article",
            tag("h3", title),
            tag("p", definition, class_="definition"),
            _legend(list(found.values())),
            tag("div", *cells, class_=f"plots {width}"),
            class_="card half" if spans_half else "card",
        )

    def _add(self, plot: go.Figure) -> str:
        name = f"plot-{len(self.payload['plots'])}"
        drawn = json.loads(pio.to_json(plot, validate=False))
        drawn["layout"].pop("template", None)
        self.payload["plots"].append({"id": name, "data": drawn["data"], "layout": drawn["layout"]})
        return name


def drawn_sections(
    cards: Cards, figures: Sequence[Figure[Subject]], shown: Subject
) -> list[tuple[str, Markup]]:
    """Title and content of each section; a section stands where its first figure does.

    What this run has nothing to show for is named at the end, with the reason, so that no heading
    stands over nothing.

    Args:
        shown: what the page is about.
    """
    every = [(figure, plots(figure, shown)) for figure in figures]
    missing = [
        tag("p", tag("b", figure.title), f": {figure.absent}", class_="absent")
        for figure, found in every
        if not found
    ]
    by_section: dict[str, list[tuple[Figure[Any], Mapping[str, go.Figure]]]] = {}
    for figure, found in every:
        if found:
            by_section.setdefault(figure.section, []).append((figure, found))
    sections = [(title, _section(cards, shown)) for title, shown in by_section.items()]
    return [*sections, *([("Not drawn for this run", join(missing))] if missing else [])]


def _section(cards: Cards, shown: Sequence[tuple[Figure[Any], Mapping[str, go.Figure]]]) -> Markup:
    is_half = [figure.width == "half" and len(found) == 1 for figure, found in shown] + [False]
    made, is_second = [], False
    for place, (figure, found) in enumerate(shown):
        # Two halves share a row; one without a neighbour takes the row, so that none is left half
        # empty.
        spans_half = is_half[place] and (is_second or is_half[place + 1])
        width = "full" if len(found) == 1 else figure.width
        made.append(cards.card(figure.title, figure.definition, found, width, spans_half))
        is_second = spans_half and not is_second
    return tag("div", *made, class_="cards")


def _legend(found: list[go.Figure]) -> Markup:
    """The legend of a card: a button a name, which hides and shows it in all plots of the card."""
    keys: dict[str, str] = {}
    stars: set[str] = set()
    for plot in found:
        for trace in plot.data:
            if not trace.name or trace.showlegend is False:
                continue
            if trace.type == "scatter":
                keys.setdefault(
                    trace.name,
                    style.swatch(str(trace.line.color), trace.line.dash not in (None, "solid")),
                )
                if trace.marker.symbol == "star":
                    stars.add(trace.name)
            elif trace.type == "bar":
                keys.setdefault(
                    trace.name,
                    style.swatch(str(trace.marker.color), bool(trace.marker.pattern.shape)),
                )
    buttons = [
        tag(
            "button",
            tag("span", class_="swatch star" if name in stars else "swatch", style=patch),
            html.unescape(style.short(name, 34)),
            type="button",
            title=f"{html.unescape(name)}: hide or show",
            data_name=name,
            aria_pressed="true",
        )
        for name, patch in keys.items()
    ]
    return tag("div", *buttons, class_="legend") if buttons else Markup("")
