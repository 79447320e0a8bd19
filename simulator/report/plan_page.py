"""The page of ``moesim plan``: the answer in a sentence, and everything it rests on below; drawn
from the answer alone.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from simulator.report import plan_candidates, plan_tables, tables
from simulator.report.cards import Cards, drawn_sections
from simulator.report.deployment_tables import describe_making
from simulator.report.document import described, document, facts_list, in_sections
from simulator.report.gallery import plots
from simulator.report.markup import Markup, join, tag
from simulator.report.model_colours import colour_of, is_striped, model_of
from simulator.report.plan_bands import between
from simulator.report.plan_figures import figures
from simulator.report.plan_handover import handover
from simulator.report.plan_sensitivity import confidence
from simulator.report.plan_traffic import traffic_section
from simulator.results.answer import Answer
from simulator.results.answer.parts import has_bands
from simulator.results.formats import UNDEFINED, number
from simulator.results.plan_sentences.traffic import warn_of_short_traffic
from simulator.results.plan_text import limit_text, percent

_CANDIDATES = (
    "Costs are those of the whole cluster over the tokens that the traffic asks for, "
    "idle time included. Latencies are simulated on all requests. "
    "Hints under the costs say how much more than the recommended deployment; "
    "the tightest target is the one that would fail first. Energy is that of the boards at their "
    "limit with the machine room's share: an upper bound."
)
_RANGES = " Ranges below a figure hold 80 % of cases."
_ESTIMATED = " Those in italics are estimated in closed form."
_HANDOVER = (
    "The scenario files lie beside this page; moesim run takes them as they are. "
    "The serving commands start the best deployment of every model that meets the targets."
)
_BASIS = (
    "Every number that the plan took from elsewhere: what was assumed, then what was fitted, "
    "measured or published."
)
_TRAFFIC = "The requests that every deployment was judged by."
_CONFIDENCE = (
    "How far the answer could be off: from the calibration's error, other samples of requests and "
    "other samples of experts' choices. Bands hold 80 % of cases."
)


_LINK = tag("a", "About the traffic", href="#the-traffic")


class _Stated(NamedTuple):
    """What the numbers rest on, as the tables of a run's page read it."""

    run: dict[str, Any]
    deployments: list[str]


def render(answer: Answer, run: dict[str, Any]) -> str:
    """The page as one HTML document.

    Args:
        answer: what was found; what it lacks is left out.
        run: how it was made: ``command``, ``seed``, ``versions``, ``revision``.
    """
    cards = Cards()
    # A plan that was asked for less has less to show: no line says what is missing.
    shown = [figure for figure in figures() if plots(figure, answer)]
    drawn = dict(drawn_sections(cards, shown, answer))
    sections: list[tuple[str, Markup]] = []
    if (costs := plan_candidates.costs_table(answer)) is not None:
        sections.append(("The candidates", described(_CANDIDATES + _bands(answer), costs)))
    further = {
        "What if": [plan_tables.sensitivity_table(answer)],
        "When nodes fail": [
            plan_tables.losses_note(answer),
            plan_tables.spare_table(answer),
            plan_tables.idle_list(answer),
        ],
        "Ruled out": [plan_tables.cannot_list(answer), plan_tables.reasons_table(answer)],
    }
    if "Where MoE wins" in drawn:
        drawn["Where MoE wins"] = join([*plan_tables.flips_list(answer), drawn["Where MoE wins"]])
    for title, content in drawn.items():
        below = [
            tag("div", part, class_="below") for part in further.get(title, []) if part is not None
        ]
        sections.append((title, join([*_lead(answer, title), content, *below])))
    said = {
        "How sure this is": (_CONFIDENCE, confidence(answer)),
        "Hand-over": (_HANDOVER, handover(answer.handover)),
        "The traffic": (_TRAFFIC, traffic_section(answer)),
    }
    sections += [
        (title, described(lead, content))
        for title, (lead, content) in said.items()
        if content is not None
    ]
    if answer.basis:
        sections.append(("What the numbers rest on", _basis(answer)))
    sections.append(("How this plan was made", _made(answer, run)))
    return document(answer.name, in_sections(_hero(answer), sections), cards.payload)


def _bands(answer: Answer) -> str:
    """What the ranges in the table of candidates are, where it has some."""
    if not plan_candidates.is_banded(answer):
        return ""
    shown = [row for _, rows in plan_candidates.groups(answer) for row in rows]
    return _RANGES + (_ESTIMATED if any(row.is_estimated for row in shown) else "")


def _lead(answer: Answer, title: str) -> list[Markup]:
    """What a section's whiskers, shades and question marks mean, where it has some."""
    parts, said = _BANDED.get(title, ((), ""))
    has_some = any(has_bands(getattr(answer, part)) for part in parts)
    return [tag("p", said, class_="lead")] if has_some else []


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
"""By section the parts of the answer whose bands it shows, and how."""


def _hero(answer: Answer) -> Markup:
    said = warn_of_short_traffic(answer.traffic)
    alert = tag("p", tag("b", "Warning: "), said, " ", _LINK, class_="alert", role="alert")
    reasons = tag("ul", *(tag("li", reason) for reason in answer.reasons), class_="reasons")
    return tag(
        "header",
        tag("p", f"{answer.name} \N{MIDDLE DOT} plan", class_="eyebrow"),
        tag("h1", answer.headline or "No answer."),
        *([alert] if said else []),
        *([reasons] if answer.reasons else []),
        facts_list(_setting(answer), "setting"),
        *_notice(answer),
    )


def _setting(answer: Answer) -> dict[str, str]:
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
        cases = between(best.band_of("headroom"), lambda times: percent(times - 1))
        more = f" ({cases})" if cases else ""
        shown["Headroom"] = f"{percent(best.headroom - 1)} more traffic{more}"
    return shown | plan_tables.sizes_list(answer)


def _notice(answer: Answer) -> list[Markup]:
    count = len({warning for stated in answer.basis.values() for warning in stated.warnings})
    if not count:
        return []
    said = "1 warning" if count == 1 else f"{count} warnings"
    link = tag("a", f"{said} about what these numbers rest on", href="#what-the-numbers-rest-on")
    return [tag("p", link, class_="notice")]


def _basis(answer: Answer) -> Markup:
    """The warnings, what was assumed, and folded away what was measured or published; under the
    models' own colours.
    """
    models = {name: model_of(answer, name) for name in answer.basis}
    short = [model.model if model else name for name, model in models.items()]
    named: dict[str, dict[str, Any]] = {}
    for (name, facts), label in zip(answer.basis.items(), short, strict=True):
        model = models[name]
        look = (
            {"colour": colour_of(answer, model), "is_striped": is_striped(model)} if model else {}
        )
        # A deployment is called by its model where it is the only one of it.
        named[label if short.count(label) == 1 else name] = {**facts.model_dump(), **look}
    shown = _Stated({"deployments": named}, list(named))
    parts = [tables.warnings_list(shown), tables.assumptions_table(shown, kinds=tables.KINDS[:1])]
    if (rest := tables.assumptions_table(shown, kinds=tables.KINDS[1:])) is not None:
        parts.append(
            tag(
                "details",
                tag("summary", "What was fitted, measured or published"),
                tag("div", rest, class_="below"),
            )
        )
    return described(_BASIS, join(part for part in parts if part is not None))


def _made(answer: Answer, run: dict[str, Any]) -> Markup:
    # The time that it took is left to run.json, so that two plans of one seed give the same page.
    made = {
        key: value for key, value in describe_making(run).items() if key not in ("Started", "Took")
    }
    facts = facts_list(
        {"Command": run.get("command"), "Seed": run.get("seed", answer.seed), **made}
    )
    if not run.get("question"):
        return facts
    question = json.dumps(run["question"], indent=2, ensure_ascii=False)
    return join(
        [
            facts,
            tag(
                "details",
                tag("summary", "The question as it was resolved"),
                tag("pre", question, tabindex=0),
            ),
        ]
    )
