"""The table of candidates on the page of ``moesim plan``: what each costs, and how near its limits
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from simulator.report import style, tables
from simulator.report.markup import Markup, join, tag
from simulator.report.model_colours import colour_of, is_striped
from simulator.report.plan_bands import band, between, has_bands
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


def runners_up(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates behind the recommended one; of several that differ in the step's budget only,
    the best.
    """
    best = answer.get("recommended") or {}
    found: dict[str, dict[str, Any]] = {}
    for row in answer.get("candidates", []):
        if row["deployment"] != best.get("deployment"):
            found.setdefault(row["deployment"], row)
    return list(found.values())


def other_models(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The best of the models that are not recommended, the cheapest first."""
    best = answer.get("recommended") or {}
    rows = [
        row
        for row in answer.get("best_of_each_model", {}).values()
        if row["model"] != best.get("model")
    ]
    return sorted(rows, key=lambda row: (row["cost_per_hour"], row["gpus"]))


def groups(
    answer: dict[str, Any], most: int = MOST_RUNNERS_UP
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What is shown of the candidates, under which heading; no deployment twice."""
    if answer.get("recommended"):
        yield "Recommended", [answer["recommended"]]
    others = other_models(answer)
    named = {row["deployment"] for row in others}
    behind = [row for row in runners_up(answer) if row["deployment"] not in named][:most]
    if behind:
        yield "Runners-up", behind
    if others:
        yield "Best of the other models", others


def costs_table(answer: dict[str, Any]) -> Markup | None:
    """The recommended deployment, the runners-up and the best of each other model, or what comes
    nearest: a row each.
    """
    found = list(groups(answer))
    nearest = (answer.get("why_not") or {}).get("row")
    if not found and nearest:
        found = [("Nearest, as large as the limits allow", [nearest])]
    missing = [
        row for row in _missing(answer) if row["deployment"] != (nearest or {}).get("deployment")
    ]
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
            cells = [tag("td", column.cell(row), data_label=column.brief) for column in columns]
            is_estimated = row.get("band") not in (None, "simulated")
            rows.append(
                tag(
                    "tr",
                    tag("th", *_named(answer, row), scope="row"),
                    *cells,
                    class_="estimated" if is_estimated else False,
                )
            )
    return tables.table(head, rows, "metrics numbers plan stack", "The candidates")


def _missing(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each model that cannot, the nearest deployment, and what it misses."""
    told = (answer.get("why_not_models") or {}).values()
    return [{**why["row"], "why": why.get("text")} for why in told if why.get("row")]


def _named(answer: dict[str, Any], row: dict[str, Any]) -> list[Markup]:
    patch = style.swatch(colour_of(answer, row), is_striped(row))
    name = tag(
        "span",
        tag("span", class_="swatch", style=patch),
        tag("span", row["deployment"], class_="name"),
        class_="deployment",
    )
    hints = [kind_of(row)]
    hints += [f"{row['token_budget']:,} tokens a step"] if row.get("token_budget") else []
    why = [tag("span", str(row["why"]), class_="hint")] if row.get("why") else []
    return [name, tag("span", ", ".join(hints), class_="hint"), *why]


class _Column(NamedTuple):
    title: str
    hint: str
    brief: str
    """Above each cell, where a phone shows no header."""
    cell: Callable[[dict[str, Any]], Markup]


def _columns(answer: dict[str, Any], shown: list[dict[str, Any]]) -> list[_Column]:
    """What the rows have to show."""
    currency, limits = answer.get("currency", "USD"), answer.get("targets", {})
    has_power = any(row.get("cost_power_per_hour") for row in shown)
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
    for name, limit in limits.items():
        text = partial(value_text, name)
        columns.append(
            _Column(
                target_short(name),
                f"limit {text(limit)}",
                target_short(name),
                partial(_figure, name, text),
            )
        )
    columns.append(_Column("Tightest", "of its limit", "tightest", _tightest))
    if any(row.get("is_best_probability") is not None for row in shown):
        columns.append(_Column("Chance", "of being the cheapest", "chance cheapest", _chance))
    if any(row.get("cost_joules_per_output_token") for row in shown):
        joules = partial(_figure, "cost_joules_per_output_token", partial(number, keep_zeros=True))
        columns.append(_Column("Energy", "J per token out", "J/token out", joules))
    if any(row.get("quality") is not None for row in shown):
        columns.append(
            _Column("Quality", "as stated", "quality", partial(_figure, "quality", number))
        )
    return columns


def _head(title: str, hint: str) -> Markup:
    return join([title, *([tag("span", hint, class_="hint")] if hint else [])])


def _figure(key: str, text: Callable[[float], str], row: dict[str, Any]) -> Markup:
    """A figure with its band below."""
    if row.get(key) is None:
        return join([UNDEFINED])
    cases = between(band(row, key), text)
    return join([text(row[key]), *([tag("span", cases, class_="hint band")] if cases else [])])


def _tightest(row: dict[str, Any]) -> Markup:
    if row.get("worst_ratio") is None:
        return join([UNDEFINED])
    return join(
        [
            share(row["worst_ratio"]),
            tag("span", target_short(str(row.get("worst_target") or "")), class_="hint"),
        ]
    )


def _chance(row: dict[str, Any]) -> Markup:
    """How probable it is that a row is the cheapest; of rows that cost the same the first is."""
    first, least = row.get("is_best_probability"), row.get("none_cheaper_probability")
    if first is None:
        return join([UNDEFINED])
    tied = least is not None and chance(least) != chance(first)
    return join(
        [
            chance(first),
            *([tag("span", f"{chance(least or 0.0)} with ties", class_="hint")] if tied else []),
        ]
    )


def _cost(answer: dict[str, Any], row: dict[str, Any]) -> Markup:
    """A cost per hour, with how much more than the recommended deployment's it is, and its band."""
    best = answer.get("recommended") or {}
    value, cheapest = row.get("cost_per_hour"), best.get("cost_per_hour")
    if value is None:
        return join([UNDEFINED])
    found = band(row, "cost_per_hour")
    if found is None and row is best and value:
        # Where machines have no price this band is one of GPUs.
        found = band(answer.get("confidence") or {}, "cost")
    more = f"+{percent(value / cheapest - 1)}" if cheapest and value / cheapest >= 1.005 else ""
    hints = [tag("span", more, class_="hint")] if more else []
    cases = between(found, amount)
    return join(
        [amount(value), *hints, *([tag("span", cases, class_="hint band")] if cases else [])]
    )


def is_banded(answer: dict[str, Any]) -> bool:
    """Whether any figure of the table of candidates has a band."""
    rows = [row for _, own in groups(answer) for row in own]
    return has_bands(rows) or between(band(answer.get("confidence") or {}, "cost"), amount) != ""
