"""The tables and lists of the page of ``moesim plan`` beside the candidates: what if, what is idle,
what was ruled out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from simulator.report.plan_bands import Cell, band_text
from simulator.results.answer import Answer, SensitivityRow, SpareRow
from simulator.results.answer.failures import SpareExperts
from simulator.results.formats import UNDEFINED, count, number
from simulator.results.plan_text import (
    amount,
    count_gpus,
    money,
    per_hour,
    target_text,
    times,
    value_text,
)

_MOST_REASONS = 40


class Listed(NamedTuple):
    """A table that a phone shows as a list."""

    label: str
    columns: dict[str, str]
    """Class of the cells of each column by its title."""
    rows: Sequence[Sequence[str | Cell]]
    """Rows of as many cells; an empty one is left out on a phone."""


def list_not_tried(answer: Answer) -> dict[str, str]:
    """Reasons of the models and machines that were never tried."""
    models = {name: why.text for name, why in answer.why_not_models.items() if not why.row}
    return models | answer.clusters_ruled_out


def list_reasons(answer: Answer) -> Listed | None:
    """Candidates that were ruled out by reason, with one of them; None where none was."""
    found = sorted((row for row in answer.ruled_out if row.count), key=lambda row: -row.count)
    if not found:
        return None
    columns = {"Why": "", "Candidates": "value", "Such as": "source"}
    rows = [[row.reason, f"{row.count:,}", row.example] for row in found[:_MOST_REASONS]]
    return Listed("Why candidates were ruled out", columns, rows)


def list_sensitivity(answer: Answer) -> Listed | None:
    """The best deployment under each change, with what to know; None where none was tried."""
    if not answer.sensitivity:
        return None
    columns = {
        "Change": "",
        "Cost per hour": "value",
        "Over today's": "value",
        "Best deployment": "deployed",
    }
    if any(row.note for row in answer.sensitivity):
        columns["To know"] = "source"
    rows: list[list[str | Cell]] = []
    for row in answer.sensitivity:
        ratio = times(row.cost_ratio) if row.cost_ratio else UNDEFINED
        another = " (another choice)" if row.flips and row.deployment else ""
        cells: list[str | Cell] = [
            row.change,
            _cost(answer, row),
            Cell(ratio, band=band_text(row.band_of("cost_ratio"), times)),
            f"{row.deployment or 'none within the limits'}{another}",
            row.note,
        ]
        rows.append(cells[: len(columns)])
    return Listed("The best deployment under each change", columns, rows)


def _cost(answer: Answer, row: SensitivityRow | SpareRow) -> Cell:
    return Cell(
        _money(answer, row.cost_per_hour), band=band_text(row.band_of("cost_per_hour"), amount)
    )


def _money(answer: Answer, cost: float | None) -> str:
    return UNDEFINED if cost is None else money(cost, answer.currency)


def list_spare(answer: Answer) -> Listed | None:
    """The cluster that keeps every target with GPUs or nodes lost; None where it was not looked
    for.
    """
    if not answer.spare_nodes:
        return None
    columns = {
        "What may be lost": "value",
        "Smallest cluster": "",
        "Cost per hour": "value",
        "For the spare": "value",
    }
    rows: list[list[str | Cell]] = [
        [row.lost, _cluster(answer, row), _cost(answer, row), _spare(answer, row)]
        for row in answer.spare_nodes
    ]
    return Listed("What it takes to keep every target with GPUs or nodes lost", columns, rows)


def _cluster(answer: Answer, row: SpareRow) -> str:
    held = f"{count_gpus(row.gpus)} on {count(row.nodes or 0, 'node')}" if row.gpus else UNDEFINED
    if row.gpus_in_whole_nodes:
        held += f"; in whole nodes {count_gpus(row.gpus_in_whole_nodes)}"
        held += f", {per_hour(row.cost_per_hour_in_whole_nodes or 0.0, answer)}"
    return held


def _spare(answer: Answer, row: SpareRow) -> str:
    return (
        row.why
        if row.extra_cost_per_hour is None
        else _money(answer, row.extra_cost_per_hour or None)
    )


def note_losses(answer: Answer) -> str:
    """The requests that losses are of; empty where of all."""
    return " ".join(dict.fromkeys(row.note for row in answer.losses if row.note))


def list_idle(answer: Answer) -> dict[str, str]:
    """Facts on what is paid for and stands idle."""
    found = answer.idle
    if found is None:
        return {}
    shown: dict[str, str] = {}
    if found.unused_gpus:
        cost = per_hour(found.unused_cost_per_hour, answer)
        shown["GPUs that no replica uses"] = f"{found.unused_gpus:,}, {cost}"
    if found.held_back_gpus:
        cost = per_hour(found.held_back_cost_per_hour, answer)
        held_back = f"{found.held_back_gpus:,}, so that {found.held_back} may be lost"
        shown["GPUs held back for failures"] = f"{held_back}; {cost}"
    return shown | _describe_copies(answer, found.spare_experts)


def _describe_copies(answer: Answer, copies: SpareExperts | None) -> dict[str, str]:
    """Facts on the memory that copies of experts take, under the names of their fields."""
    shown = {}
    for key, value in ({} if copies is None else copies.model_dump()).items():
        if value is not None:
            name = key.replace("_", " ").removesuffix(" per hour")
            said = number(value) if isinstance(value, float) else str(value)
            shown[f"Spare experts: {name}"] = per_hour(value, answer) if "cost" in key else said
    return shown


def list_sizes(answer: Answer) -> dict[str, str]:
    """Facts on the next smaller and the next larger size."""
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
