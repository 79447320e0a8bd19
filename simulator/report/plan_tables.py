"""The tables and lists of the page of ``moesim plan`` beside the candidates: what if, what is idle,
what was ruled out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simulator.report import tables
from simulator.report.document import facts_list
from simulator.report.markup import Markup, tag
from simulator.report.plan_bands import between, with_band
from simulator.results.answer import Answer, SpareRow
from simulator.results.answer.failures import SpareExperts
from simulator.results.formats import UNDEFINED, number
from simulator.results.plan_text import (
    amount,
    count,
    count_gpus,
    money,
    per_hour,
    target_text,
    times,
    value_text,
)

_MOST_REASONS = 40
_MOST_FLIPS = 4


def cannot_list(answer: Answer) -> Markup | None:
    """Models and machines that were never tried, and why; None where there are none."""
    models = {name: why.text for name, why in answer.why_not_models.items() if not why.row}
    items = [
        tag("li", tag("b", name), f": {why}")
        for name, why in (models | answer.clusters_ruled_out).items()
    ]
    return tag("ul", *items, class_="notes") if items else None


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


def reasons_table(answer: Answer) -> Markup | None:
    """Why candidates were ruled out, how many, and one of them; None where none was."""
    found = sorted((row for row in answer.ruled_out if row.count), key=lambda row: -row.count)
    if not found:
        return None
    rows = [[row.reason, f"{row.count:,}", row.example] for row in found[:_MOST_REASONS]]
    return listed(
        ["Why", "Candidates", "Such as"],
        rows,
        ["", "value", "source"],
        "Why candidates were ruled out",
    )


def sensitivity_table(answer: Answer) -> Markup | None:
    """Under each change the best deployment, and what to know about it; None where none was
    tried.
    """
    if not answer.sensitivity:
        return None
    has_notes = any(row.note for row in answer.sensitivity)
    rows = []
    for row in answer.sensitivity:
        ratio = times(row.cost_ratio) if row.cost_ratio else UNDEFINED
        best = row.deployment or "none within the limits"
        cells = [
            row.change,
            with_band(
                _cost(answer, row.cost_per_hour), between(row.band_of("cost_per_hour"), amount)
            ),
            with_band(ratio, between(row.band_of("cost_ratio"), times)),
            f"{best} (another choice)" if row.flips and row.deployment else best,
        ]
        rows.append([*cells, *([row.note] if has_notes else [])])
    head = [
        "Change",
        "Cost per hour",
        "Over today's",
        "Best deployment",
        *(["To know"] if has_notes else []),
    ]
    classes = ["", "value", "value", "deployed", *(["source"] if has_notes else [])]
    return listed(head, rows, classes, "The best deployment under each change")


def _cost(answer: Answer, cost: float | None) -> str:
    return UNDEFINED if cost is None else money(cost, answer.currency)


def spare_table(answer: Answer) -> Markup | None:
    """The cluster that keeps every target with GPUs or nodes lost; None where it was not looked
    for.
    """
    if not answer.spare_nodes:
        return None
    rows = []
    for row in answer.spare_nodes:
        held = (
            f"{count_gpus(row.gpus)} on {count(row.nodes or 0, 'node')}" if row.gpus else UNDEFINED
        )
        if row.gpus_in_whole_nodes:
            held += f"; in whole nodes {count_gpus(row.gpus_in_whole_nodes)}"
            held += f", {per_hour(row.cost_per_hour_in_whole_nodes or 0.0, answer)}"
        cost = with_band(
            _cost(answer, row.cost_per_hour), between(row.band_of("cost_per_hour"), amount)
        )
        more = row.why if row.extra_cost_per_hour is None else _extra(answer, row)
        rows.append([row.lost, held, cost, more])
    head = ["What may be lost", "Smallest cluster", "Cost per hour", "For the spare"]
    return listed(
        head,
        rows,
        ["value", "", "value", "value"],
        "What it takes to keep every target with GPUs or nodes lost",
    )


def _extra(answer: Answer, row: SpareRow) -> str:
    return _cost(answer, row.extra_cost_per_hour or None)


def losses_note(answer: Answer) -> Markup | None:
    """Of which requests the losses are; None where of all."""
    notes = dict.fromkeys(row.note for row in answer.losses if row.note)
    return tag("p", " ".join(notes), class_="lead") if notes else None


def idle_list(answer: Answer) -> Markup | None:
    """What is paid for and stands idle; None where nothing does."""
    found = answer.idle
    if found is None:
        return None
    shown: dict[str, str] = {}
    if found.unused_gpus:
        cost = per_hour(found.unused_cost_per_hour, answer)
        shown["GPUs that no replica uses"] = f"{found.unused_gpus:,}, {cost}"
    if found.held_back_gpus:
        cost = per_hour(found.held_back_cost_per_hour, answer)
        held_back = f"{found.held_back_gpus:,}, so that {found.held_back} may be lost"
        shown["GPUs held back for failures"] = f"{held_back}; {cost}"
    shown |= _describe_copies(answer, found.spare_experts)
    return facts_list(shown) if shown else None


def _describe_copies(answer: Answer, copies: SpareExperts | None) -> dict[str, str]:
    """Facts on the memory that copies of experts take, under the names of their fields."""
    shown = {}
    for key, value in ({} if copies is None else copies.model_dump()).items():
        if value is not None:
            name = key.replace("_", " ").removesuffix(" per hour")
            said = number(value) if isinstance(value, float) else str(value)
            shown[f"Spare experts: {name}"] = per_hour(value, answer) if "cost" in key else said
    return shown


def flips_list(answer: Answer) -> list[Markup]:
    """Where the winner changes, in sentences; most of them folded away."""
    said = () if answer.crossover is None else answer.crossover.flips
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


def sizes_list(answer: Answer) -> dict[str, str]:
    """The next smaller and the next larger size, as facts."""
    shown: dict[str, str] = {}
    if answer.sizes is None:
        return shown
    if (smaller := answer.sizes.smaller) is not None:
        over = value_text(smaller.worst_target, smaller.measured)
        target = target_text(smaller.worst_target)
        shown["Next size down"] = f"{smaller.gpus} GPUs: {target} would be {over}"
    if (larger := answer.sizes.larger) is not None:
        cost = f", {per_hour(larger.cost_per_hour, answer)}" if larger.cost_per_hour else ""
        shown["Next size up"] = f"{larger.gpus} GPUs{cost}"
    return shown
