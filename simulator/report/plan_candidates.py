"""The table of candidates on the page of ``moesim plan``: what each costs, and how near its limits
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from simulator.report import style, tables
from simulator.report.markup import Markup, join, tag
from simulator.report.model_colours import colour_of, is_striped
from simulator.report.plan_bands import between, with_band
from simulator.results.answer import Answer, DeploymentRow
from simulator.results.answer.parts import has_bands
from simulator.results.formats import UNDEFINED, number
from simulator.results.plan_text import (
    amount,
    chance,
    kind_of,
    percent,
    share,
    target_short,
    value_text,
)

MOST_RUNNERS_UP = 8


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


def groups(
    answer: Answer, most: int = MOST_RUNNERS_UP
) -> Iterator[tuple[str, Sequence[DeploymentRow]]]:
    """What is shown of the candidates, under which heading; no deployment twice. Where none meets
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
    nearest = _nearest(answer)
    if nearest is not None and not (answer.recommended or behind or others):
        yield "Nearest, as large as the limits allow", [nearest]


def _nearest(answer: Answer) -> DeploymentRow | None:
    return None if answer.why_not is None else answer.why_not.row


def costs_table(answer: Answer) -> Markup | None:
    """The recommended deployment, the runners-up and the best of each other model, or what comes
    nearest: a row each.
    """
    found, nearest = list(groups(answer)), _nearest(answer)
    reasons = {
        why.row.deployment: why
        for why in answer.why_not_models.values()
        if why.row and (nearest is None or why.row.deployment != nearest.deployment)
    }
    missing = [why.row for why in reasons.values() if why.row]
    if missing:
        found.append(("Models that miss a target, as large as the limits allow", missing))
    if not found:
        return None
    columns = _columns(answer, [row for _, rows in found for row in rows])
    head = ["Deployment", *(_head(column.title, column.hint) for column in columns)]
    rows = []
    for title, own in found:
        above = tag("span", title)
        rows.append(
            tag("tr", tag("th", above, scope="colgroup", colspan=len(head)), class_="group")
        )
        for row in own:
            why = reasons.get(row.deployment) if own is missing else None
            cells = [tag("td", column.cell(row), data_label=column.brief) for column in columns]
            named = tag("th", *_named(answer, row, "" if why is None else why.text), scope="row")
            estimated = "estimated" if row.is_estimated else False
            rows.append(tag("tr", named, *cells, class_=estimated))
    return tables.table(head, rows, "metrics numbers plan stack", "The candidates")


def _named(answer: Answer, row: DeploymentRow, why: str) -> list[Markup]:
    patch = style.swatch(colour_of(answer, row), is_striped(row))
    name = tag(
        "span",
        tag("span", class_="swatch", style=patch),
        tag("span", row.deployment, class_="name"),
        class_="deployment",
    )
    hints = [kind_of(row), *([f"{row.token_budget:,} tokens a step"] if row.token_budget else [])]
    said = [", ".join(hints), *([why] if why else [])]
    return [name, *(tag("span", text, class_="hint") for text in said)]


class _Column(NamedTuple):
    title: str
    hint: str
    brief: str
    """Above each cell, where a phone shows no header."""
    cell: Callable[[DeploymentRow], Markup]


def _columns(answer: Answer, shown: list[DeploymentRow]) -> list[_Column]:
    """What the rows have to show."""
    currency = answer.currency
    has_power = any(row.cost_power_per_hour for row in shown)
    columns = [
        _Column(
            "Cost per hour",
            f"{currency}, with power" if has_power else currency,
            f"{currency}/hour",
            partial(_cost, answer),
        ),
        _Column(
            "Per 1M tokens out",
            currency,
            f"{currency}/1M out",
            partial(_figure, "cost_per_million_output_tokens", amount),
        ),
        _Column(
            "Per 1M tokens",
            f"{currency}, with prompts",
            f"{currency}/1M all",
            partial(_figure, "cost_per_million_tokens", amount),
        ),
        _Column("GPUs", "", "GPUs", partial(_figure, "gpus", lambda count: f"{count:,.0f}")),
    ]
    for name, limit in answer.targets.items():
        text, short = partial(value_text, name), target_short(name)
        columns.append(_Column(short, f"limit {text(limit)}", short, partial(_figure, name, text)))
    columns.append(_Column("Tightest", "of its limit", "tightest", _tightest))
    if any(row.is_best_probability is not None for row in shown):
        columns.append(_Column("Chance", "of being the cheapest", "chance cheapest", _chance))
    if any(row.cost_joules_per_output_token for row in shown):
        joules = partial(_figure, "cost_joules_per_output_token", partial(number, keep_zeros=True))
        columns.append(_Column("Energy", "J per token out", "J/token out", joules))
    if any(row.quality is not None for row in shown):
        columns.append(
            _Column("Quality", "as stated", "quality", partial(_figure, "quality", number))
        )
    return columns


def _head(title: str, hint: str) -> Markup:
    return join([title, *([tag("span", hint, class_="hint")] if hint else [])])


def _figure(name: str, text: Callable[[float], str], row: DeploymentRow) -> Markup:
    """A figure with its band below."""
    value = row.measured(name)
    if value is None:
        return join([UNDEFINED])
    return with_band(text(value), between(row.band_of(name), text))


def _tightest(row: DeploymentRow) -> Markup:
    return join(
        [share(row.worst_ratio), tag("span", target_short(row.worst_target), class_="hint")]
    )


def _chance(row: DeploymentRow) -> Markup:
    """How probable it is that a row is the cheapest; of rows that cost the same the first is."""
    first, least = row.is_best_probability, row.none_cheaper_probability
    if first is None:
        return join([UNDEFINED])
    tied = least is not None and chance(least) != chance(first)
    return join(
        [
            chance(first),
            *([tag("span", f"{chance(least or 0.0)} with ties", class_="hint")] if tied else []),
        ]
    )


def _cost(answer: Answer, row: DeploymentRow) -> Markup:
    """A cost per hour, with how much more than the recommended deployment's it is, and its band."""
    best, value = answer.recommended, row.cost_per_hour
    found = row.band_of("cost_per_hour")
    if found is None and row is best and value and answer.confidence is not None:
        # Where machines have no price this band is one of GPUs.
        found = answer.confidence.cost_band
    ratio = value / best.cost_per_hour if best is not None and best.cost_per_hour else 0.0
    more = [tag("span", f"+{percent(ratio - 1)}", class_="hint")] if ratio >= 1.005 else []
    return with_band(join([amount(value), *more]), between(found, amount))


def is_banded(answer: Answer) -> bool:
    """Whether any figure of the table of candidates has a band."""
    sure = answer.confidence
    return has_bands([row for _, rows in groups(answer) for row in rows]) or (
        sure is not None and between(sure.cost_band, amount) != ""
    )
