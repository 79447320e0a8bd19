"""Errors of predictions against measurements: their spread, their bias, what bands hold, rows that
were answered, and accuracy from one revision to the next.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from simulator.base.arrays import Floats
from simulator.base.formats import count, log_ticks, number, parameters, seconds, time_axis
from simulator.lab.results.scores import (
    BANDS_HOLD,
    TARGETS,
    Scoreboard,
    is_answered,
    score,
    title_of,
)
from simulator.report import style
from simulator.report.gallery import Figure
from simulator.report.marks import DOTTED, add_agreement, log_axis
from simulator.report.style import shorten

STATUS_COLOURS = {"ok": "#228833", "extrapolated": "#EE7733", "unsupported": "#A5ACB5"}
STATUS_NAMES = {
    "ok": "inside the measured domain",
    "extrapolated": "extrapolated",
    "unsupported": "not answered",
}


def amount(value: float, unit: str) -> str:
    """A value with its unit; times in the one that reads best.

    >>> amount(0.0123, "s"), amount(1500.0, "tokens/s")
    ('12.3 ms', '1,500 tokens/s')
    """
    return seconds(value) if unit == "s" else f"{number(value)} {unit}"


def parts(board: Scoreboard) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each suite's quantity by its title, with its rows."""
    for (suite, quantity), own in board.rows.groupby(["suite", "quantity"], sort=False):
        yield title_of(str(suite), str(quantity)), own


def select_answered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a prediction, which have an error."""
    return rows[is_answered(rows["status"]) & (rows["predicted"] > 0) & (rows["measured"] > 0)]


def ratios(board: Scoreboard) -> dict[str, Floats]:
    """Predictions over measurements of each suite's quantity that has some."""
    found = {title: select_answered(rows) for title, rows in parts(board)}
    return {
        title: (rows["predicted"] / rows["measured"]).to_numpy(float)
        for title, rows in found.items()
        if len(rows)
    }


def share_figure(num_bars: int, **layout: Any) -> go.Figure:
    """An empty figure of bars whose lengths are shares of rows."""
    return style.figure(
        "Share of rows",
        "",
        90 + 28 * num_bars,
        xaxis={"range": [0, 1.04], **style.SHARE_TICKS},
        yaxis={"autorange": "reversed"},
        **layout,
    )


def lines(board: Scoreboard) -> dict[str, dict[str, object]]:
    """The line of each suite's quantity: its colour, and a dash beyond the eighth."""
    return {title: style.line_at(i) for i, (title, _) in enumerate(parts(board))}


def status_of(rows: pd.DataFrame) -> pd.Series:
    """``ok``, ``extrapolated`` or ``unsupported``."""
    return rows["status"].str.split(":", n=1).str[0].where(rows["predicted"].notna(), "unsupported")


_LOW, _HIGH = 0.005, 2.0
_TICKS = (0.01, 0.03, 0.1, 0.3, 1.0)
_SHARES = np.linspace(0, 1, 101)


class Errors(Figure[Scoreboard]):
    """A curve a suite and quantity: the share of answered rows whose error is at most so large."""

    title = "Share of rows within an error"
    section = "Errors"
    definition = (
        "The share of answered rows whose absolute error, relative to the measurement, "
        "is at most so large. Higher and further left is better; "
        "the dotted lines are the median and the 90th percentile."
    )
    absent = "No measured row was answered."
    order = 20

    def draw(self, board: Scoreboard) -> go.Figure | None:
        drawn = style.figure(
            "Absolute error",
            "Share of rows",
            360,
            xaxis=log_axis(_LOW, _HIGH, _ticks),
            yaxis={"range": [0, 1.01], **style.SHARE_TICKS},
        )
        for title, ratio in ratios(board).items():
            error = np.quantile(np.abs(ratio - 1), _SHARES)
            drawn.add_scatter(
                x=np.maximum(error, _LOW / 10),
                y=_SHARES,
                name=html.escape(title, quote=False),
                mode="lines",
                line=lines(board)[title],
                hovertemplate="%{y:.0%} of rows are within %{x:.1%}",
            )
        for share in (0.5, 0.9) if drawn.data else ():
            drawn.add_hline(y=share, line=DOTTED)
        return drawn if drawn.data else None


def _ticks(*_: float) -> dict[str, list[float] | list[str]]:
    return {"tickvals": list(_TICKS), "ticktext": [f"{tick:.0%}" for tick in _TICKS]}


_TICKS_BIAS = (0.2, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
_CROWDED = (0.67, 0.8, 1.25, 1.5)
"""Ticks that are left out where others would not have room."""
_SHARES_BIAS = (0.1, 0.25, 0.5, 0.75, 0.9)


class Bias(Figure[Scoreboard]):
    """A box a suite and quantity: predicted over measured."""

    title = "Predicted over measured"
    section = "Errors"
    definition = (
        "Boxes hold the middle half of the rows, whiskers 80 %; the mark is the median. "
        "Right of 1 a prediction is too large."
    )
    absent = "No measured row was answered."
    order = 21

    def draw(self, board: Scoreboard) -> go.Figure | None:
        spread = {title: np.quantile(found, _SHARES_BIAS) for title, found in ratios(board).items()}
        if not spread:
            return None
        farthest = max(1.3, *(max(found[-1], 1 / found[0]) for found in spread.values()))
        reach = min(farthest * 1.05, 6.0)
        drawn = style.figure(
            "Predicted / measured",
            "",
            90 + 30 * len(spread),
            xaxis=log_axis(1 / reach, reach, _ticks_bias),
            yaxis={"autorange": "reversed"},
        )
        for title, found in spread.items():
            least, first, middle, third, most = found.tolist()
            name = html.escape(title, quote=False)
            drawn.add_box(
                y=[name],
                q1=[first],
                median=[middle],
                q3=[third],
                lowerfence=[least],
                upperfence=[most],
                orientation="h",
                name=name,
                line={"color": lines(board)[title]["color"], "width": 1.5},
                showlegend=False,
                hoverinfo="x",
                xhoverformat=".3~g",
            )
        drawn.add_vline(x=1, line=DOTTED)
        return drawn


def _ticks_bias(low: float, high: float) -> dict[str, list[float] | list[str]]:
    ticks = [tick for tick in _TICKS_BIAS if low <= tick <= high]
    if len(ticks) > 7:
        ticks = [tick for tick in ticks if tick not in _CROWDED]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


class Coverage(Figure[Scoreboard]):
    """A bar a suite and quantity."""

    title = "Measurements inside their bands"
    section = "Bands and answers"
    definition = (
        "Share of answered rows whose measurement lies between the prediction's low and high. "
        f"They are meant to hold 80 %: the strip is {100 * BANDS_HOLD[0]:.0f} % "
        f"to {100 * BANDS_HOLD[1]:.0f} %. Above it bands are too wide, below too narrow."
    )
    absent = "No answered row has a band."
    order = 30

    def draw(self, board: Scoreboard) -> go.Figure | None:
        if board.rows.empty:
            return None
        found = score(board.rows, ["suite", "quantity"]).dropna(subset="covered")
        if found.empty:
            return None
        titles = list(map(title_of, found["suite"], found["quantity"]))
        drawn = share_figure(len(found))
        drawn.add_bar(
            x=found["covered"].to_list(),
            y=[html.escape(title, quote=False) for title in titles],
            orientation="h",
            marker={"color": [lines(board)[title]["color"] for title in titles]},
            showlegend=False,
            hovertemplate="%{x:.1%} of rows<extra>%{y}</extra>",
        )
        drawn.add_vrect(*BANDS_HOLD, fillcolor=style.MUTED, opacity=0.25, line_width=0)
        return drawn


_BAND = 0.25
_MOST_POINTS = 700
"""Most points of a plot, drawn at random: a page of all would not open."""
_LONGEST_NAME = 70
_HEIGHT = 364
_MARGIN = {"t": 36, "r": 30}
"""Pixels: above, Plotly's buttons hide no point; to the right, half of a last tick's label fits on
a telephone."""


class Scatter(Figure[Scoreboard]):
    """A point a measurement on logarithmic axes; a plot a suite and quantity."""

    title = "Prediction against measurement"
    section = "Predicted against measured"
    definition = (
        "A point a measured row, on logarithmic axes; on the line they agree, "
        f"and the band is {100 * _BAND:.0f} % off either way. Of more than {_MOST_POINTS} rows as "
        "many were drawn at random."
    )
    absent = "No measured row was answered."
    order = 10

    def draw(self, board: Scoreboard) -> dict[str, go.Figure]:
        found = {title: select_answered(rows) for title, rows in parts(board)}
        return {
            f"{html.escape(title)}, {count(len(rows), 'row')}": _plot(rows)
            for title, rows in found.items()
            if len(rows)
        }


def _plot(rows: pd.DataFrame) -> go.Figure:
    if len(rows) > _MOST_POINTS:
        rows = rows.sample(_MOST_POINTS, random_state=0)
    unit = str(rows["unit"].iloc[0])
    both = rows[["measured", "predicted"]].to_numpy(float)
    size, name = time_axis(float(np.median(both))) if unit == "s" else (1.0, unit)
    low, high = float(both.min()) / size / 1.5, float(both.max()) / size * 1.5
    axis = log_axis(low, high, _ticks_scatter)
    titles = f"Measured ({name})", f"Predicted ({name})"
    drawn = style.figure(*titles, _HEIGHT, margin=_MARGIN, xaxis=axis, yaxis=axis)
    add_agreement(drawn, low, high, [_BAND])
    statuses = status_of(rows)
    for status in ("ok", "extrapolated"):
        own = rows[statuses == status]
        if own.empty:
            continue
        drawn.add_scatter(
            x=(own["measured"] / size).to_numpy(float),
            y=(own["predicted"] / size).to_numpy(float),
            name=STATUS_NAMES[status],
            mode="markers",
            line={"color": STATUS_COLOURS[status]},
            marker={"color": STATUS_COLOURS[status], "size": 5, "opacity": 0.55},
            text=[_said(row, unit) for row in own.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
        )
    return drawn


def _ticks_scatter(low: float, high: float) -> dict[str, list[Any]]:
    """Ticks whose large numbers fit a phone."""
    ticks: dict[str, list[Any]] = log_ticks(low, high)
    values = ticks["tickvals"]
    texts = [
        parameters(v) if v >= 1e4 else t for v, t in zip(values, ticks["ticktext"], strict=True)
    ]
    return {"tickvals": values, "ticktext": texts}


def _said(row: dict[Any, Any], unit: str) -> str:
    measured, predicted = float(row["measured"]), float(row["predicted"])
    group, subject = (
        html.escape(shorten(str(row[key]), _LONGEST_NAME), quote=False)
        for key in ("group", "subject")
    )
    return (
        f"{group}<br>row {subject}<br>{amount(measured, unit)} measured, "
        f"{amount(predicted, unit)} predicted ({predicted / measured - 1:+.0%})"
    )


class AnswersFigure(Figure[Scoreboard]):
    """A bar a suite and quantity, split by status."""

    title = "Rows that are answered"
    section = "Bands and answers"
    definition = (
        "Outside the domain that was measured a prediction is extrapolated, "
        "and its band is wider; where nothing can be said, nothing is."
    )
    absent = "Nothing was measured."
    order = 31

    def draw(self, board: Scoreboard) -> go.Figure | None:
        shares = {
            html.escape(title, quote=False): status_of(rows).value_counts(normalize=True)
            for title, rows in parts(board)
        }
        drawn = share_figure(len(shares), barmode="stack")
        for status, name in STATUS_NAMES.items():
            values = [float(found.get(status, 0.0)) for found in shares.values()]
            if any(values):
                drawn.add_bar(
                    x=values,
                    y=list(shares),
                    orientation="h",
                    name=name,
                    marker={"color": STATUS_COLOURS[status]},
                    hovertemplate=f"%{{x:.1%}} {name}<extra>%{{y}}</extra>",
                )
        return drawn if shares else None


class History(Figure[Scoreboard]):
    """A line for each target: median error of unseen rows over the runs of a history."""

    title = "Median error over time"
    section = "History"
    definition = (
        "Each mark is a run that was added to the history, by its date and revision; errors are "
        "of models, shapes and GPUs left out of the fits, and of published figures."
    )
    absent = "No history was named: moesim validate --history FILE keeps one."
    order = 60
    width = "full"

    def draw(self, board: Scoreboard) -> go.Figure | None:
        if board.history.empty:
            return None
        drawn = style.figure("", "Median error (%)", 360)
        found = board.history[board.history["what"].isin([target.what for target in TARGETS])]
        for place, (what, own) in enumerate(found.groupby("what", sort=False)):
            drawn.add_scatter(
                x=own["date"],
                y=100 * own["unseen_median"],
                name=html.escape(str(what), quote=False),
                text=own["revision"].fillna("no revision"),
                mode="lines+markers",
                line={"color": style.colour_at(place)},
                hovertemplate="%{text}, %{x}: %{y:.1f} %",
            )
        return drawn
