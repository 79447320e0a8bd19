"""The page of ``moesim execute``."""

from __future__ import annotations

import math
from collections.abc import Iterator

from simulator.base.formats import number
from simulator.report import style
from simulator.report.deployment_tables import (
    describe_deployments,
    describe_making,
)
from simulator.report.front import Gauge, Mark, make_front
from simulator.report.gallery import FigureCards, load_figures
from simulator.report.rendering import render_page
from simulator.results.answer.parts import Band
from simulator.results.executed import (
    KINDS,
    SUMMARY_COLUMNS,
    TITLES,
    Executed,
    find_load,
    find_pace,
    kind_of_step,
    kinds,
    list_losses,
)

FIGURES = load_figures("report.execution_figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""


def render(executed: Executed) -> str:
    """The page as one HTML document."""
    cards, run = FigureCards(), executed.run
    name = str(run.get("name") or "execution")
    speeds = executed.summary.groupby("kind")["tokens_per_s"]
    return render_page(
        "execution.html",
        name,
        cards,
        front=make_front(name, executed.verdict, executed, gauges=list(_draw_gauges(executed))),
        run=run,
        execution=(run.get("scenario") or {}).get("execution") or {},
        noise_warnings=[find_load(executed), find_pace(executed)],
        drawn=cards.draw(FIGURES, executed),
        faults=list_losses(executed),
        kind_of=lambda step: KINDS[kind_of_step(executed, step)],
        definitions=SUMMARY_COLUMNS,
        kinds={kind: TITLES[kind] for kind in kinds(executed)},
        rows=executed.summary.to_dict("records"),
        fastest=speeds.max()[speeds.size() > 1].to_dict(),
        making=describe_making(run),
        **describe_deployments(executed),
    )


def _draw_gauges(executed: Executed) -> Iterator[Gauge]:
    """Measured beside predicted speed, a gauge a kind of step."""
    swatches = style.swatches(executed)
    for kind, rows in executed.summary.groupby("kind", sort=False):
        marks = []
        for row in rows.to_dict("records"):
            name, speed, predicted = (
                row[key] for key in ("deployment", "tokens_per_s", "predicted_tokens_per_s")
            )
            is_known = predicted is not None and math.isfinite(predicted)
            said = f"predicted {number(predicted)}" if is_known else ""
            ends = Band(*sorted([speed, predicted])) if is_known else None
            marks.append(Mark(name, swatches[name], speed, number(speed), ends, said))
        yield Gauge(TITLES[str(kind)], marks, None, "tokens/s; the line reaches to the prediction")
