"""How figures moved over revisions: a line of JSON for each call of ``make bench``, and plots of
them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from simulator.report import style
from simulator.report.gallery import Card, FigureCards, pair_up
from tests.benchmarks.collect import title_of
from tests.benchmarks.rows import Bench, tell_value

COLUMNS = ("date", "revision", "effort", "processor", "kind", "figure", "unit", "value", "better")
"""Of the table of all figures of a history, a row a figure and call."""
_HEIGHT = 280


def append_history(bench: Bench, path: Path) -> None:
    """Add a line with the date, the revision, the machine, and every figure that was found."""
    figures = [
        {
            "kind": row.kind,
            "figure": f"{row.name}: {row.measure}",
            "unit": row.unit,
            "value": row.value,
            "better": row.better,
        }
        for row in bench.rows
        if row.value is not None
    ]
    line = {
        "date": bench.made["started"],
        "revision": bench.made["revision"],
        "effort": bench.made["effort"],
        "machine": bench.made["machine"],
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def read_history(path: Path, bench: Bench) -> pd.DataFrame:
    """Figures of earlier calls that can be compared with this one: of its processor and its sizes;
    :data:`COLUMNS`, oldest first.
    """
    found = pd.DataFrame(list(_read_rows(path)), columns=list(COLUMNS))
    is_alike = (found["effort"] == bench.made["effort"]) & (
        found["processor"] == bench.made["machine"]["processor"]
    )
    return found[is_alike].sort_values("date", ignore_index=True)


def _read_rows(path: Path) -> Iterator[dict[str, object]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in map(json.loads, lines):
        made = {name: line[name] for name in ("date", "revision", "effort")}
        made["processor"] = line["machine"]["processor"]
        yield from (made | figure for figure in line["figures"])


def draw_history(cards: FigureCards, history: pd.DataFrame) -> list[Card]:
    """A plot for each scenario that was measured more than once."""
    drawn = []
    for kind, own in history.groupby("kind", sort=False):
        if len(set(own["date"])) > 1:
            drawn.append((title_of(str(kind)), "Each figure over its first one.", _draw(own)))
    return pair_up(cards, drawn)


def _draw(own: pd.DataFrame) -> go.Figure:
    drawn = style.figure("Revision", "Times as good as at first", _HEIGHT)
    for number, (figure, line) in enumerate(own.groupby("figure", sort=False)):
        name = html.escape(str(figure), quote=False)
        colour = style.DEPLOYMENT_COLOURS[number % len(style.DEPLOYMENT_COLOURS)]
        gain = line["value"] / line["value"].iloc[0]
        drawn.add_scatter(
            x=[f"{day[:10]} {revision}" for day, revision in zip(line["date"], line["revision"], strict=True)],
            y=gain if line["better"].iloc[0] == "higher" else 1.0 / gain,
            name=name,
            mode="lines+markers",
            line={"color": colour},
            text=[tell_value(value, unit) for value, unit in zip(line["value"], line["unit"], strict=True)],
            hovertemplate=f"%{{text}}, %{{x}}<extra>{name}</extra>",
        )  # fmt: skip
    drawn.update_xaxes(type="category")
    return drawn
