"""The page's tables: the metrics compared, the models and deployments, and what was assumed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from simulator.report import style
from simulator.report.markup import Markup, join, tag
from simulator.report.style import Shown
from simulator.report.texts import shorten

KINDS = ("assumed", "fitted", "interpolated", "published", "measured")
"""What a number can be, the least certain first: that is what a reader should see first."""


def rumour_mark() -> Markup:
    """What stands behind every name of a model that is not published."""
    return tag(
        "span",
        "rumoured",
        class_="badge rumour",
        title="This model is not published; its figures are rumours.",
    )


def name_with_mark(results: Shown, name: str, length: int = 48) -> Markup:
    """A deployment's name, cut to ``length``, with its colour and the mark of a rumoured model."""
    swatch = tag("span", class_="swatch", style=style.swatches(results)[name])
    shown = shorten(name, length)
    marks = [rumour_mark()] if style.facts(results, name).get("is_rumour") else []
    return tag(
        "span",
        swatch,
        tag("span", shown, class_="name"),
        *marks,
        class_="deployment",
        title=False if shown == name else name,
    )


def table(head: Sequence[str], rows: Iterable[Markup], class_: str, label: str) -> Markup:
    """A table in a box that scrolls sideways."""
    header = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    # Focusable, so that a keyboard can scroll it.
    return tag(
        "div",
        tag("table", header, tag("tbody", *rows), class_=class_),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=label,
    )


def assumptions_table(results: Shown, kinds: Collection[str] = KINDS) -> Markup | None:
    """Every number that is not the run's own, the least certain first; one row where deployments
    share it.

    Args:
        kinds: those that are shown; what is of none of :data:`KINDS` counts as the least certain.
    """
    users: dict[tuple[str, str, str, str], list[str]] = {}
    for name in results.deployments:
        for row in style.facts(results, name).get("assumptions") or []:
            key = (str(row["what"]), str(row["value"]), str(row["kind"]), str(row["source"]))
            if (key[2] if key[2] in KINDS else KINDS[0]) not in kinds:
                continue
            users.setdefault(key, []).append(name)
    if not users:
        return None
    certainty = {kind: place for place, kind in enumerate(KINDS)}
    rows = []
    for (what, value, kind, source), names in sorted(
        users.items(), key=lambda item: certainty.get(item[0][2], -1)
    ):
        badge = tag("span", kind, class_=f"badge {kind if kind in KINDS else 'assumed'}")
        used = (
            "all"
            if len(names) == len(results.deployments)
            else join([name_with_mark(results, n) for n in names])
        )
        cells = (
            tag("td", what),
            tag("td", value, class_="value", data_label="Value"),
            tag("td", badge, data_label="Kind"),
            tag("td", source, class_="source", data_label="Source"),
            tag("td", used, data_label="Deployments"),
        )
        rows.append(tag("tr", *cells))
    return table(
        ["What", "Value", "Kind", "Source", "Deployments"],
        rows,
        "assumptions stack",
        "What was assumed",
    )


def warnings_list(results: Shown) -> Markup | None:
    """The deployments' warnings, with the names of those that share one."""
    users: dict[str, list[str]] = {}
    for name in results.deployments:
        for warning in style.facts(results, name).get("warnings") or []:
            users.setdefault(str(warning), []).append(name)
    if not users:
        return None
    items = [
        tag(
            "li",
            warning,
            " ",
            tag("span", *(name_with_mark(results, n) for n in names), class_="whose"),
        )
        for warning, names in users.items()
    ]
    return tag("ul", *items, class_="warnings")
