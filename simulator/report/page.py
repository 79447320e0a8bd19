"""The page of ``moesim run``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.report.deployment_tables import (
    describe_deployments,
    describe_making,
    list_metrics,
    split_at_rumours,
)
from simulator.report.figure_cards import FigureCards
from simulator.report.gallery import load_figures
from simulator.report.rendering import render_page
from simulator.results.folder import Results
from simulator.results.formats import KEY_METRICS, UNDEFINED, number, seconds
from simulator.results.metrics import METRICS

FIGURES = load_figures("report.figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""

_NO_VERDICT = "No verdict: the run says nothing to compare."


def render(results: Results) -> str:
    """The page as one HTML document."""
    cards, run = FigureCards(), results.run
    verdict, workload = run.get("verdict") or {}, run.get("workload") or {}
    return render_page(
        "run.html",
        str(run.get("name") or "run"),
        cards,
        headline=split_at_rumours(str(verdict.get("headline") or _NO_VERDICT), results),
        reasons=[split_at_rumours(str(r), results) for r in verdict.get("reasons") or []],
        setting=dict(_describe_setting(workload, run.get("slo") or {})),
        notes=workload.get("notes") or [],
        key_metrics=list_metrics(results, KEY_METRICS),
        all_metrics=list_metrics(results, METRICS),
        drawn=cards.draw(FIGURES, results),
        making=_describe_making(run, workload),
        scenario=run.get("scenario") or {},
        **describe_deployments(results),
    )


def _describe_setting(
    workload: dict[str, Any], targets: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """The workload and the targets as short facts."""
    yield "Workload", str(workload.get("name") or UNDEFINED)
    if workload.get("num_requests") is not None:
        lasts_s, rate_per_s = workload.get("duration_s"), workload.get("rate_per_s")
        over = f" over {seconds(float(lasts_s))}" if lasts_s else ""
        rate = f", {number(float(rate_per_s))}/s" if rate_per_s else ""
        yield "Requests", f"{workload['num_requests']:,}{over}{rate}"
    for side in ("input", "output"):
        if lengths := workload.get(side):
            p99 = f", p99 {number(float(lengths['p99']))}" if lengths.get("p99") is not None else ""
            yield f"{side.capitalize()} tokens", f"mean {number(float(lengths['mean']))}{p99}"
    limits = [
        f"{key[:-2].upper()} ≤ {seconds(float(limit))}"
        for key, limit in targets.items()
        if limit is not None
    ]
    yield "Targets", ", ".join(limits) or "none set"


def _describe_making(run: dict[str, Any], workload: dict[str, Any]) -> dict[str, Any]:
    """Facts that are needed to make the run again."""
    return {
        "Command": run.get("command"),
        "Seed": run.get("seed"),
        "Fidelity": run.get("fidelity"),
        **describe_making(run),
        "Workload": workload.get("provenance"),
    }
