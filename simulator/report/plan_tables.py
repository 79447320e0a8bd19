"""The tables of the page of ``moesim plan``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from simulator.report import style, tables
from simulator.report.document import facts_list
from simulator.report.markup import Markup, join, tag
from simulator.report.model_colours import colour_of, is_striped
from simulator.report.plan_bands import band, between, has_bands
from simulator.results.formats import UNDEFINED, number
from simulator.results.plan_text import (
    amount,
    chance,
    kind_of,
    money,
    percent,
    share,
    target_short,
    target_text,
    times,
    value_text,
)

MOST_RUNNERS_UP = 8
_MOST_REASONS = 40
_MOST_FLIPS = 4


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


def cannot_list(answer: dict[str, Any]) -> Markup | None:
    """Models and machines that were never tried, and why; None where there are none."""
    models = {
        name: why["text"]
        for name, why in (answer.get("why_not_models") or {}).items()
        if not why.get("row")
    }
    said = models | (answer.get("clusters_ruled_out") or {})
    return (
        tag(
            "ul",
            *(tag("li", tag("b", name), f": {why}") for name, why in said.items()),
            class_="notes",
        )
        if said
        else None
    )


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


def listed(
    head: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str], label: str
) -> Markup:
    """A table that a phone shows as a list: each row's first cell as its heading, the others under
    their column's name.

    Args:
        rows: as many cells as ``head`` has; an empty one is left out on a phone.
        classes: of the cells of each column.
    """
    made = [
        tag(
            "tr",
            *(
                tag("td", cell, class_=class_ or False, data_label=title if place else False)
                for place, (cell, title, class_) in enumerate(zip(row, head, classes, strict=True))
            ),
        )
        for row in rows
    ]
    return tables.table(head, made, "assumptions stack", label)


def reasons_table(answer: dict[str, Any]) -> Markup | None:
    """Why candidates were ruled out, how many, and one of them; None where none was."""
    found = sorted(
        (row for row in answer.get("ruled_out", []) if row["count"]), key=lambda row: -row["count"]
    )
    if not found:
        return None
    rows = [[row["reason"], f"{row['count']:,}", row["example"]] for row in found[:_MOST_REASONS]]
    return listed(
        ["Why", "Candidates", "Such as"],
        rows,
        ["", "value", "source"],
        "Why candidates were ruled out",
    )


def sensitivity_table(answer: dict[str, Any]) -> Markup | None:
    """Under each change the best deployment, and what to know about it; None where none was
    tried.
    """
    found, currency = answer.get("sensitivity") or [], answer.get("currency", "USD")
    if not found:
        return None
    has_notes = any(row.get("note") for row in found)
    rows = []
    for row in found:
        cost = (
            money(row["cost_per_hour"], currency)
            if row.get("cost_per_hour") is not None
            else UNDEFINED
        )
        ratio = times(row["cost_ratio"]) if row.get("cost_ratio") else UNDEFINED
        best = str(row.get("deployment") or "none within the limits")
        cells = [
            str(row["change"]),
            _with_band(cost, between(band(row, "cost_per_hour"), amount)),
            _with_band(ratio, between(band(row, "cost_ratio"), times)),
            f"{best} (another choice)" if row.get("flips") and row.get("deployment") else best,
        ]
        rows.append([*cells, *([str(row.get("note") or "")] if has_notes else [])])
    head = [
        "Change",
        "Cost per hour",
        "Over today's",
        "Best deployment",
        *(["To know"] if has_notes else []),
    ]
    classes = ["", "value", "value", "deployed", *(["source"] if has_notes else [])]
    return listed(head, rows, classes, "The best deployment under each change")


def _with_band(said: str, cases: str) -> Markup:
    return join([said, *([tag("span", cases, class_="hint band")] if cases else [])])


def spare_table(answer: dict[str, Any]) -> Markup | None:
    """The cluster that keeps every target with so many nodes lost; None where it was not looked
    for.
    """
    found, currency = answer.get("spare_nodes") or [], answer.get("currency", "USD")
    if not found:
        return None
    rows = []
    for row in found:
        held = (
            f"{_many(row['gpus'], 'GPU')} on {_many(row['nodes'], 'node')}"
            if row.get("gpus")
            else UNDEFINED
        )
        cost = (
            money(row["cost_per_hour"], currency)
            if row.get("cost_per_hour") is not None
            else UNDEFINED
        )
        extra = row.get("extra_cost_per_hour")
        more = (
            str(row.get("why") or "")
            if extra is None
            else money(extra, currency)
            if extra
            else UNDEFINED
        )
        cost = _with_band(cost, between(band(row, "cost_per_hour"), amount))
        rows.append([_many(row["nodes_lost"], "node"), held, cost, more])
    head = ["Nodes that may be lost", "Smallest cluster", "Cost per hour", "For the spare"]
    return listed(
        head,
        rows,
        ["value", "", "value", "value"],
        "What it takes to keep every target with nodes lost",
    )


def losses_note(answer: dict[str, Any]) -> Markup | None:
    """Of which requests the losses are; None where of all."""
    notes = dict.fromkeys(str(row["note"]) for row in answer.get("losses") or [] if row.get("note"))
    return tag("p", " ".join(notes), class_="lead") if notes else None


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def idle_list(answer: dict[str, Any]) -> Markup | None:
    """What is paid for and stands idle; None where nothing does."""
    found, currency = answer.get("idle") or {}, answer.get("currency", "USD")
    shown: dict[str, str] = {}
    if found.get("unused_gpus"):
        cost = money(found["unused_cost_per_hour"], currency)
        shown["GPUs that no replica uses"] = f"{found['unused_gpus']:,}, {cost} per hour"
    if found.get("held_back_nodes"):
        cost = money(found["held_back_cost_per_hour"], currency)
        shown["Nodes held back for failures"] = f"{found['held_back_nodes']:,}, {cost} per hour"
    for key, value in (found.get("spare_experts") or {}).items():
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            name = str(key).replace("_", " ").removesuffix(" per hour")
            said = (
                money(value, currency) + " per hour"
                if "cost" in key and not isinstance(value, str)
                else _plain(value)
            )
            shown[f"Spare experts: {name}"] = said
    return facts_list(shown) if shown else None


def flips_list(answer: dict[str, Any]) -> list[Markup]:
    """Where the winner changes, in sentences; most of them folded away."""
    said = [str(sentence) for sentence in (answer.get("crossover") or {}).get("flips") or []]
    if not said:
        return []
    first, rest = said[:_MOST_FLIPS], said[_MOST_FLIPS:]
    shown = tag("ul", *(tag("li", sentence) for sentence in first), class_="notes")
    folded = tag("ul", *(tag("li", sentence) for sentence in rest), class_="notes")
    more = (
        [tag("details", tag("summary", f"{len(rest)} further readings of the map"), folded)]
        if rest
        else []
    )
    return [tag("div", shown, *more, class_="flips")]


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def sizes_list(answer: dict[str, Any]) -> dict[str, str]:
    """The next smaller and the next larger size, as facts."""
    sizes, currency = answer.get("sizes") or {}, answer.get("currency", "USD")
    shown = {}
    if smaller := sizes.get("smaller"):
        over = value_text(smaller["worst_target"], smaller["measured"])
        shown["Next size down"] = (
            f"{smaller['gpus']} GPUs: {target_text(smaller['worst_target'])} would be {over}"
        )
    if larger := sizes.get("larger"):
        cost = (
            f", {money(larger['cost_per_hour'], currency)} per hour"
            if larger["cost_per_hour"]
            else ""
        )
        shown["Next size up"] = f"{larger['gpus']} GPUs{cost}"
    return shown
