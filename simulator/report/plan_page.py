"""The page of ``moesim plan``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

from simulator.base.formats import TIMES, amount, batched_tokens, chance, number, percent, times
from simulator.report import style
from simulator.report.deployment_tables import (
    KINDS,
    describe_making,
    list_assumptions,
    list_warnings,
    name_deployments,
)
from simulator.report.front import Gauge, find_doubt, make_front, make_mark
from simulator.report.gallery import FigureCards, load_figures
from simulator.report.plan_looks import colour_of, is_striped, model_of
from simulator.report.rendering import render_page
from simulator.results import plan_text
from simulator.results.answer import Answer, DeploymentRow
from simulator.results.answer.certainty import FigureBand
from simulator.results.answer.folder import PlanResults
from simulator.results.answer.handover import Handover, ServingCommand, by_flag
from simulator.results.answer.parts import Band, band_text, has_bands, make_band
from simulator.results.plan_sentences import explain_traffic, share_of_time
from simulator.results.plan_text import (
    is_floor,
    kind_of,
    share,
    target_short,
    target_text,
    value_text,
)
from simulator.results.results_folder import Cell, ResultsFolder


def list_figures(answer: Answer) -> list[list[str]]:
    """A row a figure of the recommended deployment: its name, its value and its band; none where
    confidence was not worked out.
    """
    figures = {} if answer.confidence is None else answer.confidence.figures
    return [_figure(answer, name, one) for name, one in figures.items()]


def _figure(answer: Answer, name: str, found: FigureBand) -> list[str]:
    """A figure of the recommended deployment with its band: that of its row, where the row has
    one.
    """
    text = partial(value_text, name)
    value: float | None = found.value
    cases: Band | None = found.band
    row = answer.recommended
    if row is not None and row.band_of(name) is not None:
        value, cases = row.measured_value(name), row.band_of(name)
    value = found.value if value is None else value
    return [target_text(name), text(value), band_text(cases, text) or text(value)]


def format_ends(low: float | None, high: float | None, text: Callable[[float], str]) -> str:
    """The ends of a band in words; empty without any, and a cluster that is not to be had where the
    band has no high end.
    """
    if low is None:
        return ""
    if high is None:
        return f"{text(low)} to no cluster within the limits"
    return band_text(make_band(low, high), text) or text(low)


MOST_RUNNERS_UP = 8
_MISSED = "Models that miss a target, as large as the limits allow"


class Column(NamedTuple):
    """A column of the table."""

    figure: str
    """Name of the row's figure that it shows."""
    text: str
    """Title of the column."""
    hint: str
    """Text below the title."""
    brief: str
    """Title above each cell, where a phone shows no header."""
    write: Callable[[float], str]


class Candidate(NamedTuple):
    """A row of the table."""

    row: DeploymentRow
    swatch: str
    what: str
    why: str
    """The target that it misses; empty where it meets all."""

    @property
    def machines(self) -> str:
        """Kind of the cluster, without its size."""
        return self.row.cluster.removesuffix(f"-{self.row.gpus}")

    @property
    def gpu_price(self) -> float:
        """Price of a GPU an hour, without electricity that is paid apart."""
        return (self.row.cost_per_hour - self.row.cost_power_per_hour) / (self.row.gpus or 1)


class CandidatesTable(NamedTuple):
    """The candidates by the heading that they stand under."""

    columns: list[Column]
    groups: dict[str, list[Candidate]]
    is_banded: bool
    has_estimates: bool

    @property
    def prices(self) -> dict[str, float]:
        """Price of a GPU an hour by kind of machines."""
        return {one.machines: one.gpu_price for rows in self.groups.values() for one in rows}


def list_candidates(answer: Answer) -> CandidatesTable | None:
    """The recommended deployment, the runners-up and the best of each other model, or what comes
    nearest; None where there is none.
    """
    found = {title: [_view(answer, row) for row in rows] for title, rows in groups(answer)}
    estimates = any(one.row.is_estimated for rows in found.values() for one in rows)
    nearest = None if answer.why_not is None else answer.why_not.row
    found[_MISSED] = [
        _view(answer, why.row, why.text)
        for why in answer.why_not_models.values()
        if why.row and not (nearest and _is_same(why.row, nearest))
    ]
    found = {title: rows for title, rows in found.items() if rows}
    if not found:
        return None
    every = [candidate.row for rows in found.values() for candidate in rows]
    return CandidatesTable(_columns(answer, every), found, _is_banded(answer), estimates)


def groups(
    answer: Answer, most: int = MOST_RUNNERS_UP
) -> Iterator[tuple[str, Sequence[DeploymentRow]]]:
    """Headings and what is shown of the candidates below; no deployment twice. Where none meets
    the targets, what comes nearest.
    """
    if answer.recommended is not None:
        yield "Recommended", [answer.recommended]
    others = answer.other_models()
    named = {row.deployment for row in others}
    behind = [row for row in runners_up(answer) if row.deployment not in named][:most]
    if behind:
        yield "Runners-up", behind
    if others:
        yield "Best of the other models", others
    nearest = None if answer.why_not is None else answer.why_not.row
    if nearest is not None and not (answer.recommended or behind or others):
        yield "Nearest, as large as the limits allow", [nearest]


def runners_up(answer: Answer) -> list[DeploymentRow]:
    """The candidates behind the recommended one; of several that differ in the step's budget only,
    the best.
    """
    best = answer.recommended and answer.recommended.deployment
    found: dict[str, DeploymentRow] = {}
    for row in answer.candidates:
        if row.deployment != best:
            found.setdefault(row.deployment, row)
    return list(found.values())


def _is_same(one: DeploymentRow, other: DeploymentRow) -> bool:
    """Whether two rows are of one deployment: two models may have deployments of one text."""
    return (one.model, one.deployment) == (other.model, other.deployment)


def _view(answer: Answer, row: DeploymentRow, why: str = "") -> Candidate:
    swatch = style.swatch(colour_of(answer, row), is_striped(row))
    budget = f", {batched_tokens(row.token_budget)}" if row.token_budget else ""
    return Candidate(row, swatch, kind_of(row) + budget, why)


def _columns(answer: Answer, shown: list[DeploymentRow]) -> list[Column]:
    """Columns of what the rows have to show."""
    currency = answer.currency
    power = ", with power" if any(row.cost_power_per_hour for row in shown) else ""
    out, every = (f"cost_per_million_{kind}" for kind in ("output_tokens", "tokens"))
    columns = [
        Column("cost_per_hour", "Cost per hour", currency + power, f"{currency}/hour", amount),
        Column(out, "Per 1M tokens out", currency, f"{currency}/1M out", amount),
        Column(every, "Per 1M tokens", f"{currency}, with prompts", f"{currency}/1M all", amount),
        Column("gpus", "GPUs", "", "GPUs", lambda count: f"{count:,.0f}"),
    ]
    for name, limit in answer.targets.items():
        text, short = partial(value_text, name), target_short(name)
        columns.append(Column(name, short, f"limit {text(limit)}", short, text))
    columns.append(Column("worst_ratio", "Binding SLO", "share of its limit", "binding SLO", share))
    if any(row.is_best_probability is not None for row in shown):
        probable = "is_best_probability"
        columns.append(
            Column(probable, "Chance", "of being the cheapest", "chance cheapest", chance)
        )
    if any(row.cost_joules_per_output_token for row in shown):
        text = partial(number, keep_zeros=True)
        joules = "cost_joules_per_output_token"
        columns.append(Column(joules, "Energy", "J per token out", "J/token out", text))
    if any(row.quality is not None for row in shown):
        columns.append(Column("quality", "Quality", "as stated", "quality", number))
    return columns


def _is_banded(answer: Answer) -> bool:
    """Whether any figure of the table has a band."""
    sure = answer.confidence
    return has_bands([row for _, rows in groups(answer) for row in rows]) or (
        sure is not None and band_text(sure.needed_cost_band, amount) != ""
    )


class Servers(NamedTuple):
    """Commands that start the servers of a deployment."""

    deployment: str
    notes: list[str]
    """Notes on what flags do not express."""
    sources: list[str]
    """Releases and pages that flags were read from."""
    commands: list[list[tuple[str, str]]]
    """Names and texts of commands, those together that differ in numbers only: the servers of one
    kind."""


def list_servers(found: Handover | None) -> list[Servers]:
    """The commands that start the servers of each deployment."""
    by_deployment: dict[str, list[ServingCommand]] = {}
    for row in () if found is None else found.commands:
        by_deployment.setdefault(row.deployment, []).append(row)
    return [
        Servers(
            deployment,
            list(dict.fromkeys(note for row in rows for note in row.not_expressed)),
            list(dict.fromkeys(row.flags_read for row in rows if row.flags_read)),
            [
                [(row.name.removeprefix(f"{deployment}: "), by_flag(row.command)) for row in alike]
                for _, alike in groupby((row for row in rows if row.command), _hide_numbers)
            ],
        )
        for deployment, rows in by_deployment.items()
    ]


def _hide_numbers(row: ServingCommand) -> str:
    return re.sub(r"[0-9]+(,[0-9]+)*", "0", row.command)


FIGURES = load_figures("report.plan_figures")
"""Figures in the order of the page; a file without one is refused before anything is run."""


def render(plan: PlanResults) -> str:
    """The page as one HTML document; what the answer lacks is left out."""
    answer, run = plan.answer, plan.run
    cards, stated = FigureCards(), _list_facts(answer)
    gauges = list(_draw_gauges(answer))
    return render_page(
        "plan.html",
        answer.name,
        cards,
        front=make_front(
            f"{answer.name} · plan", plan.verdict, None, _list_cards(answer, gauges), gauges
        ),
        answer=answer,
        text=plan_text,
        band_text=band_text,
        share_of_time=share_of_time,
        share_above=_share_above,
        limits=[plan_text.limit_text(name, limit) for name, limit in answer.targets.items()],
        candidates=list_candidates(answer),
        is_floor=is_floor,
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


_MOST_MODELS = 4
"""Models on the first screen."""


def _list_cards(answer: Answer, gauges: Sequence[Gauge]) -> dict[str, Cell | None]:
    """Machines, their cost, how sure they are to do, spare traffic, the cost of twice the traffic,
    and what is known least.
    """
    best, sure = answer.recommended, answer.confidence
    if best is None:
        return {}
    headroom = band_text(best.band_of("headroom"), _write_signed)
    likely = None if sure is None else sure.meets_targets
    return {
        "Rent": Cell(plan_text.count_gpus(best.gpus), best.cluster),
        "Cost an hour": Cell(
            plan_text.money(best.cost_per_hour, answer.currency)
            if best.cost_per_hour
            else "no price",
            _describe_needed(answer),
        ),
        "How sure": None if likely is None else Cell(chance(likely), "that every target is met"),
        "More traffic": None
        if best.headroom is None
        else Cell(
            _write_signed(best.headroom) + " or more" * best.headroom_is_least,
            headroom and f"80 % of cases: {headroom}",
        ),
        "An hour of twice the traffic": _find_doubled(answer, best),
        "Largest doubt": find_doubt(gauges),
    }


def _write_signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "\N{MINUS SIGN}")


def _share_above(ratio: float) -> str:
    return percent(ratio - 1)


def _describe_needed(answer: Answer) -> str:
    """The band of the cost of the cluster that would be needed."""
    if answer.confidence is None:
        return ""
    low, high = answer.confidence.needed_cost_low, answer.confidence.needed_cost_high
    ends = format_ends(low, high, partial(plan_text.hourly, answer))
    return f"80 % of cases need {ends}" if ends else ""


def _find_doubled(answer: Answer, best: DeploymentRow) -> Cell | None:
    """The cost of the cheapest deployment for twice the traffic."""
    compared = answer.moe_vs_dense
    point = next((one for one in compared.rates if one.rate == 2.0), None) if compared else None
    costs = [] if point is None else [point.moe_cost_per_hour, point.dense_cost_per_hour]
    known = [cost for cost in costs if cost]
    if not known or not best.cost_per_hour:
        return None
    ratio = times(min(known) / best.cost_per_hour)
    return Cell(plan_text.money(min(known), answer.currency), f"{ratio} as much")


def _draw_gauges(answer: Answer) -> Iterator[Gauge]:
    """The cost of the best deployment of each model, and each target beside its limit."""
    best = answer.recommended
    others = answer.other_models() if best else [why.row for why in answer.why_not_models.values()]
    rows = [row for row in (best, *others) if row is not None][:_MOST_MODELS]
    for name, limit in {"cost_per_hour": None, **answer.targets}.items():
        is_cost = name == "cost_per_hour"
        money = partial(plan_text.money, currency=answer.currency)
        text = money if is_cost else partial(value_text, name)
        marks = []
        for row in rows:
            value = row.measured_value(name)
            found = row.band_of("needed_cost_per_hour" if is_cost else name)
            if value:
                swatch = style.swatch(colour_of(answer, row), is_striped(row))
                label = f"{row.model} ({kind_of(row)})"
                marks.append(make_mark(label, swatch, value, found, text))
        if limit is None:
            yield Gauge("Cost an hour, of the best of each model", marks)
        else:
            asked = "at least" if is_floor(name) else "limit"
            title = target_text(name)
            most = 1.0 if name == "attainment" else math.inf
            said = f"{asked} {text(limit)}"
            yield Gauge(f"{title[0].upper()}{title[1:]}", marks, limit, said, most)


def _list_facts(answer: Answer) -> ResultsFolder:
    """The facts of each deployment under its model's own colour; a deployment is called by its
    model where it is the only one of it.
    """
    models = {name: model_of(answer, name) for name in answer.basis}
    short = [model.model if model else name for name, model in models.items()]
    named = {}
    for (name, facts), label in zip(answer.basis.items(), short, strict=True):
        shown = facts.model_dump()
        if (model := models[name]) is not None:
            shown |= {"colour": colour_of(answer, model), "is_striped": is_striped(model)}
        named[label if short.count(label) == 1 else name] = shown
    return ResultsFolder({"deployments": named})
