"""The page of ``moesim plan``, drawn from the answer alone."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from simulator.report.deployment_tables import (
    KINDS,
    describe_making,
    list_assumptions,
    list_warnings,
    name_deployments,
)
from simulator.report.figure_cards import FigureCards
from simulator.report.gallery import load_figures
from simulator.report.model_colours import colour_of, is_striped, model_of
from simulator.report.plan_bands import band_text
from simulator.report.plan_candidates import list_candidates
from simulator.report.plan_handover import list_servers
from simulator.report.plan_sensitivity import format_ends, list_figures
from simulator.report.rendering import render_page
from simulator.results import plan_text
from simulator.results.answer import Answer
from simulator.results.answer.parts import has_bands
from simulator.results.formats import TIMES, number, percent
from simulator.results.plan_sentences.failures import share_of_time
from simulator.results.plan_sentences.traffic import explain_traffic, warn_of_short_traffic

FIGURES = load_figures("report.plan_figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""


class _Stated(NamedTuple):
    """Facts that the numbers rest on, as tables of deployments read them."""

    run: dict[str, Any]
    deployments: list[str]


def render(answer: Answer, run: dict[str, Any]) -> str:
    """The page as one HTML document.

    Args:
        answer: what was found; what it lacks is left out.
        run: how it was made: ``command``, ``seed``, ``versions``, ``revision``.
    """
    cards, stated = FigureCards(), _list_facts(answer)
    return render_page(
        "plan.html",
        answer.name,
        cards,
        headline=answer.headline or "No answer.",
        warning=warn_of_short_traffic(answer.traffic),
        reasons=answer.reasons,
        answer=answer,
        text=plan_text,
        band_text=band_text,
        share_of_time=share_of_time,
        share_above=lambda times: percent(times - 1),
        limits=[plan_text.limit_text(name, limit) for name, limit in answer.targets.items()],
        candidates=list_candidates(answer),
        # A plan that was asked for less has less to show: no line says what is missing.
        drawn=cards.draw(FIGURES, answer),
        has_bands=has_bands,
        flips=() if answer.crossover is None else answer.crossover.flips,
        figures=list_figures(answer),
        ends=format_ends,
        factor=lambda ratio: f"{number(ratio)}{TIMES}",
        hourly=partial(plan_text.hourly, answer),
        servers=list_servers(answer.handover),
        traffic_notes=[] if answer.traffic is None else explain_traffic(answer.traffic),
        names=name_deployments(stated),
        warnings=list_warnings(stated),
        assumed=list_assumptions(stated, KINDS[:1]),
        known=list_assumptions(stated, KINDS[1:]),
        run=run,
        making=describe_making(run),
    )


def _list_facts(answer: Answer) -> _Stated:
    """The facts of each deployment under its model's own colour; a deployment is called by its
    model where it is the only one of it.
    """
    models = {name: model_of(answer, name) for name in answer.basis}
    short = [model.model if model else name for name, model in models.items()]
    named: dict[str, dict[str, Any]] = {}
    for (name, facts), label in zip(answer.basis.items(), short, strict=True):
        shown = facts.model_dump()
        if (model := models[name]) is not None:
            shown |= {"colour": colour_of(answer, model), "is_striped": is_striped(model)}
        named[label if short.count(label) == 1 else name] = shown
    return _Stated({"deployments": named}, list(named))
