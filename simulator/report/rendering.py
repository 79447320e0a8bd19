"""Pages by Jinja2 templates, each one file that opens offline."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from simulator.base.formats import (
    TIMES,
    UNDEFINED,
    count,
    num_bytes,
    number,
    parameters,
    percent,
    seconds,
)
from simulator.report import style
from simulator.report.deployment_tables import name_deployments
from simulator.report.front import Gauge, make_front
from simulator.report.gallery import Card, FigureCards
from simulator.report.style import shorten
from simulator.results.results_folder import Cell, ResultsFolder, TextTable, Verdict

_HOMES = ("simulator.report", "simulator.lab.report")
"""Packages that hold templates."""
_PLOTLY = Path(__file__).parent / "assets/plotly-cartesian.min.js.gz"
_DIGITS = bytes(code for code in range(ord("#"), ord("y")) if code != ord("<"))
"""The 85 digits: printable, without what could begin a tag or end the element."""
_PYTHONS = f"{string.digits}{string.ascii_letters.swapcase()}!#$%&()*+-;<=>?@^_`{{|}}~".encode()
"""The digits of :func:`base64.b85encode`."""


def pack_text(name: str, text: str) -> Markup:
    """A text as an element of a data type, which the browser does not run: gzip in base 85, which
    takes a sixteenth less than base 64.

    Args:
        name: the element's id.
    """
    return _pack(name, gzip.compress(text.encode(), compresslevel=9, mtime=0))


@cache
def pack_plotly() -> Markup:
    """Plotly's script, which is the same on every page."""
    return _pack("plotly", _PLOTLY.read_bytes())


def _pack(name: str, compressed: bytes) -> Markup:
    kind = f'type="application/gzip" id="{name}" data-bytes="{len(compressed)}"'
    digits = base64.b85encode(compressed, pad=True).translate(bytes.maketrans(_PYTHONS, _DIGITS))
    return Markup(f"<script {kind}>{digits.decode()}</script>")


_ASSETS = Path(__file__).parent / "assets"


class Contents:
    """Anchors of a page's sections by title, in the order of the page."""

    def __init__(self) -> None:
        self._anchors: dict[str, str] = {}

    def add(self, title: str) -> str:
        """Add a section and return its anchor.

        >>> Contents().add("Models and deployments")
        'models-and-deployments'
        """
        return self._anchors.setdefault(title, re.sub(r"[^a-z]+", "-", title.lower()).strip("-"))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._anchors.items())

    def __contains__(self, title: object) -> bool:
        return title in self._anchors


def render_page(template: str | Template, name: str, cards: FigureCards, **shown: object) -> str:
    """Render a page as one HTML document.

    Args:
        template: file in the folder of templates, or one that is loaded.
        name: subject of the page, for its title.
        cards: figures that the page's script draws.
        shown: variables of the template.
    """
    shown_plots = {"colours": style.DEPLOYMENT_COLOURS, "plots": cards.plots}
    payload = json.dumps(shown_plots, allow_nan=False, separators=(",", ":"))
    return (
        environment()
        .get_template(template)
        .render(
            name=name,
            cards=cards,
            contents=Contents(),
            packed=[pack_text("payload", payload), pack_plotly()],
            **shown,
        )
    )


def render_part(template: str, **shown: object) -> str:
    """Render a template that is no page of results.

    Args:
        template: file in the folder of templates.
        shown: its variables.
    """
    return environment().get_template(template).render(**shown)


class Block(NamedTuple):
    """Part of a section: one of its fields."""

    cards: Sequence[Card] = ()
    table: TextTable | None = None
    facts: Mapping[str, object] | None = None
    sentences: Sequence[str] = ()
    folded: str = ""
    links: Sequence[tuple[str, str]] = ()
    """Addresses with their texts, folded away."""
    title: str = ""
    """Title of what is folded."""
    look: str = "metrics numbers"
    """CSS classes of a table or of sentences."""


class Section(NamedTuple):
    """Section of a page; left out without blocks."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""


def fold_json(title: str, value: object) -> Block:
    """A value as JSON, folded away."""
    return Block(folded=_write_json(value), title=title)


def show_table(table: TextTable) -> Block:
    """A block with a table."""
    return Block(table=table, look="metrics")


def show_tables(tables: Iterable[TextTable]) -> list[Section]:
    """A section for each table."""
    return [Section(one.title, [Block(table=one)], one.lead) for one in tables]


def render_blocks(
    name: str,
    cards: FigureCards,
    verdict: Verdict,
    sections: Sequence[Section],
    *,
    eyebrow: str = "",
    setting: Mapping[str, object] | None = None,
    shown: ResultsFolder | None = None,
    answers: Mapping[str, Cell | None] | None = None,
    gauges: Sequence[Gauge] = (),
) -> str:
    """Render a page that is a list of sections.

    Args:
        name: subject of the page.
        eyebrow: line above the headline, by default the name.
        setting: short facts below it.
        shown: deployments whose names have their colours, and marks where they are rumoured.
        answers: cards of the first screen.
        gauges: its figures against their limits.
    """
    return render_page(
        "blocks.html",
        name,
        cards,
        front=make_front(eyebrow or name, verdict, shown, answers, gauges),
        setting=setting,
        sections=sections,
        names={} if shown is None else name_deployments(shown),
    )


@cache
def environment() -> Environment:
    """The environment of all templates: it escapes, and refuses names that are not given."""
    made = Environment(
        loader=ChoiceLoader(list(map(PackageLoader, _HOMES))),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(
        count=count,
        json=_write_json,
        num_bytes=num_bytes,
        number=number,
        parameters=parameters,
        percent=percent,
        seconds=seconds,
        shorten=shorten,
    )
    made.tests.update(finite=_is_finite)
    made.globals.update(TIMES=TIMES, UNDEFINED=UNDEFINED, asset=_read_asset)
    return made


def _read_asset(name: str) -> Markup:
    return Markup((_ASSETS / name).read_text(encoding="utf-8"))


def _write_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
