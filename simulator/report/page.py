"""The page of ``moesim run``."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from simulator.report.deployment_tables import (
    describe_deployments,
    describe_making,
    list_metrics,
    split_at_rumours,
)
from simulator.report.gallery import FigureCards, load_figures
from simulator.report.rendering import render_page
from simulator.results.explained import Explained
from simulator.results.explanation_text import (
    describe_limits,
    find_help,
    list_limits,
    read_explanation,
)
from simulator.results.folder import Results
from simulator.results.formats import KEY_METRICS, better_way, heading_unit
from simulator.results.metrics import METRICS
from simulator.results.results_folder import TextTable

FIGURES = load_figures("report.figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""

_NO_VERDICT = "No verdict: the run says nothing to compare."


def render(results: Results) -> str:
    """The page as one HTML document."""
    cards, run = FigureCards(), results.run
    verdict = run.get("verdict") or {}
    first, stop, others = str(verdict.get("headline") or _NO_VERDICT).partition(". ")
    return render_page(
        "run.html",
        str(run.get("name") or "run"),
        cards,
        headline=split_at_rumours(f"{first}{stop.strip()}", results),
        more=split_at_rumours(others, results) if others else [],
        reasons=[split_at_rumours(str(r), results) for r in verdict.get("reasons") or []],
        workload=run.get("workload") or {},
        targets=run.get("slo") or {},
        metrics=METRICS,
        heading_unit=heading_unit,
        better_way=partial(better_way, is_open=results.is_open),
        key_metrics=list_metrics(results, KEY_METRICS),
        all_metrics=list_metrics(results, METRICS),
        listed=results.list_tables(),
        drawn=cards.draw(FIGURES, results),
        explained={name: _tell(one) for name, one in read_explanation(run).items()},
        run=run,
        making=describe_making(run),
        **describe_deployments(results),
    )


class _Told(NamedTuple):
    """Explanation of one deployment, as the page shows it."""

    tables: list[TextTable]
    """Limits of each pool; its pieces are a figure."""
    limits: list[str]
    """Sentences on them."""
    changes: list[str]
    """Sentences on what would help, the headline first."""


def _tell(explained: Explained) -> _Told:
    pools = explained.waterfalls
    limits = [list(list_limits(explained, pool)) for pool in pools]
    return _Told(
        [TextTable(rows[0][0], rows) for rows in limits],
        [str(one) for pool in pools for one in describe_limits(explained, pool)],
        list(map(str, find_help(explained.changes))),
    )
