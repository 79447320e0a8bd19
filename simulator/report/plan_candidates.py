"""The table of candidates on the page of ``moesim plan``: what each costs, and how near its limits
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from simulator.report import style
from simulator.report.model_colours import colour_of, is_striped
from simulator.report.plan_bands import band_text
from simulator.results.answer import Answer, DeploymentRow
from simulator.results.answer.parts import has_bands
from simulator.results.formats import number
from simulator.results.plan_text import amount, chance, kind_of, share, target_short, value_text

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


class CandidatesTable(NamedTuple):
    """The candidates by the heading that they stand under."""

    columns: list[Column]
    groups: dict[str, list[Candidate]]
    is_banded: bool
    has_estimates: bool


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
    budget = f", {row.token_budget:,} tokens a step" if row.token_budget else ""
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
    columns.append(Column("worst_ratio", "Tightest", "of its limit", "tightest", share))
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
