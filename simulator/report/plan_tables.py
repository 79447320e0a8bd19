"""The tables and lists of the page of ``moesim plan`` beside the candidates: what if, what is idle,
what was ruled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from simulator.report import tables
from simulator.report.document import facts_list
from simulator.report.markup import Markup, join, tag
from simulator.report.plan_bands import band, between
from simulator.results.formats import UNDEFINED, number
from simulator.results.plan_text import amount, money, target_text, times, value_text

_MOST_REASONS = 40
_MOST_FLIPS = 4


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
    """The cluster that keeps every target with GPUs or nodes lost; None where it was not looked
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
        if row.get("gpus_in_whole_nodes"):
            held += f"; in whole nodes {_many(row['gpus_in_whole_nodes'], 'GPU')}"
            held += f", {money(row['cost_per_hour_in_whole_nodes'], currency)} per hour"
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
        rows.append([row["lost"], held, cost, more])
    head = ["What may be lost", "Smallest cluster", "Cost per hour", "For the spare"]
    return listed(
        head,
        rows,
        ["value", "", "value", "value"],
        "What it takes to keep every target with GPUs or nodes lost",
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
    if found.get("held_back_gpus"):
        cost = money(found["held_back_cost_per_hour"], currency)
        held_back = f"{found['held_back_gpus']:,}, so that {found['held_back']} may be lost"
        shown["GPUs held back for failures"] = f"{held_back}; {cost} per hour"
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
