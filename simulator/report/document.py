"""The shell of every page: one file that opens offline, with the page's style, its script and,
compressed, Plotly and what it draws within it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulator.report.markup import Markup, join, tag
from simulator.report.packed import pack_plotly, pack_text

_HERE = Path(__file__).parent / "assets"
# Nothing may be fetched or sent: the page must read the same on a plane, and say nothing to anyone.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; form-action 'none'; base-uri 'none'"
)
_NO_SCRIPTS = "Scripts are off, so no figures are drawn; the texts and tables are complete."


def document(name: str, main: Markup, payload: Mapping[str, Any]) -> str:
    """The whole file.

    Args:
        name: of what the page is about, for the title.
        main: what is read.
        payload: what the page's script draws: :attr:`simulator.report.cards.Cards.payload`.
    """
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} · moesim"),
        tag("style", Markup((_HERE / "page.css").read_text(encoding="utf-8"))),
    ]
    no_scripts = tag("noscript", tag("p", _NO_SCRIPTS, class_="notice no-scripts", role="alert"))
    scripts = [
        pack_text("payload", json.dumps(payload, allow_nan=False, separators=(",", ":"))),
        pack_plotly(),
        tag("script", Markup((_HERE / "page.js").read_text(encoding="utf-8"))),
    ]
    return (
        "<!doctype html>\n"
        f'<html lang="en">{tag("head", *head)}{tag("body", no_scripts, main, *scripts)}</html>\n'
    )


def in_sections(header: Markup, sections: Sequence[tuple[str, Markup]]) -> Markup:
    """The header, links to the sections, and the sections under their titles."""
    anchors = {title: re.sub(r"[^a-z]+", "-", title.lower()).strip("-") for title, _ in sections}
    contents = tag(
        "nav",
        *(tag("a", title, href=f"#{anchors[title]}") for title, _ in sections),
        aria_label="Contents",
        tabindex=0,
    )
    body = [
        tag("section", tag("h2", title), content, id=anchors[title]) for title, content in sections
    ]
    return tag("main", header, contents, *body)


def described(definition: str, content: Markup) -> Markup:
    """A section's content under the line that says what it is."""
    return join([tag("p", definition, class_="lead"), content])


def facts_list(facts: Mapping[str, Any], class_: str = "provenance") -> Markup:
    """Short facts by name; those that nothing is known of are left out."""
    listed = [
        tag("div", tag("dt", key), tag("dd", str(value)))
        for key, value in facts.items()
        if value not in (None, "")
    ]
    return tag("dl", *listed, class_=class_)
