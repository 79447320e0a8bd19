"""The page of ``moesim execute``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.report.deployment_tables import (
    describe_deployments,
    describe_making,
    split_at_rumours,
)
from simulator.report.execution_numbers import TITLES, kinds, tidy
from simulator.report.execution_tables import (
    COLUMNS,
    calibration_warning,
    describe_calibration,
    list_faults,
    list_numbers,
)
from simulator.report.execution_verdict import verdict
from simulator.report.figure_cards import FigureCards
from simulator.report.gallery import load_figures
from simulator.report.rendering import render_page
from simulator.results.executed import Executed, describe_load

FIGURES = load_figures("report.execution_figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""

_UNUSED = ("kv_tokens", "memory", "scheduling", "balancing", "topology", "replicas", "num_gpus")
"""Facts that an execution makes no use of: its steps are given, and its ranks are processes."""


def render(executed: Executed) -> str:
    """The page as one HTML document."""
    executed = tidy(executed)
    cards, run, found = FigureCards(), executed.run, verdict(executed)
    execution = (run.get("scenario") or {}).get("execution") or {}
    return render_page(
        "execution.html",
        str(run.get("name") or "execution"),
        cards,
        headline=split_at_rumours(found.headline, executed),
        reasons=[split_at_rumours(reason, executed) for reason in found.reasons],
        setting={"Machine": run.get("machine"), "Ray": run.get("nodes"), **dict(_steps(execution))},
        calibration_warning=calibration_warning(run),
        load_warning=describe_load(executed),
        drawn=cards.draw(FIGURES, executed),
        faults=list_faults(executed),
        columns=COLUMNS,
        kinds={kind: TITLES[kind] for kind in kinds(executed)},
        rows=list_numbers(executed),
        calibration=describe_calibration(run),
        making=_describe_making(run, execution),
        scenario=run.get("scenario") or {},
        **describe_deployments(executed, left_out=_UNUSED, with_published=False),
    )


def _steps(execution: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The steps that were run as short facts."""
    if prompts := execution.get("prompts"):
        yield "Prompt step", f"{prompts:,} prompts of {execution.get('prompt_tokens'):,} tokens"
    if sequences := execution.get("sequences"):
        cached = f"{execution.get('context_tokens'):,} tokens in each cache"
        yield "Decode step", f"{sequences:,} sequences, {cached}"
    if steps := execution.get("steps"):
        warm_up = f" after {execution['warm_up']:,} of warm-up" if execution.get("warm_up") else ""
        yield "Steps of each kind", f"{steps:,}{warm_up}"


def _describe_making(run: dict[str, Any], execution: dict[str, Any]) -> dict[str, Any]:
    """Facts that are needed to make the execution again."""
    return {
        "Command": run.get("command"),
        "Seed": run.get("seed"),
        "Machine": run.get("machine"),
        "Ray": run.get("nodes"),
        "Transport": (execution.get("transport") or {}).get("kind"),
        **describe_making(run),
    }
