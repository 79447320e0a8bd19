"""The page of ``moesim plan``, drawn from the answer alone."""

from __future__ import annotations

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
from simulator.report.plan_candidates import CandidatesTable, list_candidates
from simulator.report.plan_handover import describe_handover
from simulator.report.plan_sensitivity import describe_confidence
from simulator.report.plan_tables import (
    list_idle,
    list_not_tried,
    list_reasons,
    list_sensitivity,
    list_sizes,
    list_spare,
    note_losses,
)
from simulator.report.plan_traffic import describe_traffic
from simulator.report.rendering import render_page
from simulator.results.answer import Answer
from simulator.results.answer.parts import has_bands
from simulator.results.formats import UNDEFINED, number, percent
from simulator.results.plan_sentences.traffic import explain_traffic, warn_of_short_traffic
from simulator.results.plan_text import limit_text

FIGURES = load_figures("report.plan_figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""

_MOST_FLIPS = 4
"""Readings of the map that are not folded away."""
_CANDIDATES = (
    "Costs are those of the whole cluster over the tokens that the traffic asks for, "
    "idle time included. Latencies are simulated on all requests. "
    "Hints under the costs say how much more than the recommended deployment; "
    "the tightest target is the one that would fail first. Energy is that of the boards at their "
    "limit with the machine room's share: an upper bound."
)
_RANGES = " Ranges below a figure hold 80 % of cases."
_ESTIMATED = " Those in italics are estimated in closed form."
_WHISKERS = "Whiskers and shades hold 80 % of cases."
_BANDED = {
    "Models against each other": (("best_of_each_model", "moe_vs_dense"), _WHISKERS),
    "Speed and cost": (("pareto",), _WHISKERS),
    "Where MoE wins": (
        ("crossover",),
        "A question mark behind a ratio: in 80 % of cases either kind may win.",
    ),
    "What if": (("sensitivity",), _WHISKERS),
    "When nodes fail": (("losses",), _WHISKERS),
}
"""Parts of the answer whose bands a section shows, and how, by its title."""


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
    cards, candidates, stated = FigureCards(), list_candidates(answer), _list_facts(answer)
    return render_page(
        "plan.html",
        answer.name,
        cards,
        headline=answer.headline or "No answer.",
        warning=warn_of_short_traffic(answer.traffic),
        reasons=answer.reasons,
        setting=_describe_setting(answer) | list_sizes(answer),
        candidates=candidates,
        candidates_lead=_explain(candidates),
        # A plan that was asked for less has less to show: no line says what is missing.
        drawn=cards.draw(FIGURES, answer),
        leads={title: _lead(answer, title) for title in _BANDED},
        flips=() if answer.crossover is None else answer.crossover.flips,
        most_flips=_MOST_FLIPS,
        sensitivity=list_sensitivity(answer),
        losses_note=note_losses(answer),
        spare=list_spare(answer),
        idle=list_idle(answer),
        not_tried=list_not_tried(answer),
        ruled_out=list_reasons(answer),
        confidence=describe_confidence(answer),
        handover=describe_handover(answer.handover),
        traffic=describe_traffic(answer.traffic),
        traffic_notes=[] if answer.traffic is None else explain_traffic(answer.traffic),
        names=name_deployments(stated),
        warnings=list_warnings(stated),
        assumed=list_assumptions(stated, KINDS[:1]),
        known=list_assumptions(stated, KINDS[1:]),
        making=_describe_making(answer, run),
        question=run.get("question"),
    )


def _explain(candidates: CandidatesTable | None) -> str:
    """Lead of the table of candidates, with what its ranges are where it has some."""
    if candidates is None or not candidates.is_banded:
        return _CANDIDATES
    return _CANDIDATES + _RANGES + (_ESTIMATED if candidates.has_estimates else "")


def _lead(answer: Answer, title: str) -> str:
    """Meaning of a section's whiskers, shades and question marks; empty where it has none."""
    parts, said = _BANDED[title]
    return said if any(has_bands(getattr(answer, part)) for part in parts) else ""


def _describe_setting(answer: Answer) -> dict[str, str]:
    traffic, best = answer.traffic, answer.recommended
    shown: dict[str, str] = {}
    if traffic is not None:
        shown["Traffic"] = (
            f"{number(traffic.rate_per_s)} requests/s, {traffic.num_requests:,} judged"
        )
        shown["Mean tokens"] = f"{number(traffic.mean_input)} in, {number(traffic.mean_output)} out"
    limits = [limit_text(name, limit) for name, limit in answer.targets.items()]
    shown["Targets"] = ", ".join(limits) or UNDEFINED
    shown["Deployments judged"] = f"{answer.num_legal + answer.num_ruled_out:,}"
    if answer.num_simulated:
        shown["Simulations"] = f"{answer.num_simulated:,}"
    if best is not None and best.headroom:
        cases = band_text(best.band_of("headroom"), lambda times: percent(times - 1))
        more = f" ({cases})" if cases else ""
        shown["Headroom"] = f"{percent(best.headroom - 1)} more traffic{more}"
    return shown


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


def _describe_making(answer: Answer, run: dict[str, Any]) -> dict[str, Any]:
    """Facts that are needed to make the plan again: the time that it took is left to ``run.json``,
    so that two plans of one seed give the same page.
    """
    made = describe_making(run)
    del made["Started"], made["Took"]
    return {"Command": run.get("command"), "Seed": run.get("seed", answer.seed), **made}
