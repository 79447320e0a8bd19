"""The page of ``moesim execute``."""

from __future__ import annotations

from simulator.report.deployment_tables import (
    describe_deployments,
    describe_making,
    split_at_rumours,
)
from simulator.report.gallery import FigureCards, load_figures
from simulator.report.rendering import render_page
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
    cards, run, verdict = FigureCards(), executed.run, executed.verdict
    speeds = executed.summary.groupby("kind")["tokens_per_s"]
    return render_page(
        "execution.html",
        str(run.get("name") or "execution"),
        cards,
        headline=split_at_rumours(verdict["headline"], executed),
        reasons=[split_at_rumours(reason, executed) for reason in verdict["reasons"]],
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
