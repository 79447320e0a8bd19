"""Tables of a few rows, which a run has where there is something to tell: files of their own, and
on the page and the console.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pandas as pd

from simulator.results.availability import OF_CHANGES
from simulator.results.folder import LISTED_TABLES, Results
from simulator.results.formats import UNDEFINED, metric
from simulator.results.metrics import METRICS


class Listed(NamedTuple):
    """Table as texts."""

    title: str
    lead: str
    """Sentence above it on the page."""
    rows: list[list[str]]
    """Titles of the columns, and a row for each of the table's; deployments come first."""


def list_tables(results: Results) -> Iterator[Listed]:
    """List the tables that have rows."""
    for name in LISTED_TABLES:
        table: pd.DataFrame = getattr(results, name).dropna(axis="columns", how="all")
        if len(table):
            yield _LISTS[name](table)


def _list_classes(table: pd.DataFrame) -> Listed:
    names = [name for name in table if name in METRICS]
    names = [name for name in names if name not in OF_CHANGES or table[name].any()]
    rows = [["Deployment", "Priority", *(METRICS[name].label for name in names)]]
    for _, row in table.iterrows():
        cells = [metric(name, float(row[name]), "") for name in names]
        priority = row["priority"]
        shown = priority if isinstance(priority, str) else f"{priority:.15g}"
        shown = UNDEFINED if pd.isna(priority) else shown
        rows.append([str(row["deployment"]), shown, *cells])
    lead = "Judged requests of each priority; where the order is by priority, the least is first."
    return Listed("By priority", lead, rows)


def _list_kv_tiers(table: pd.DataFrame) -> Listed:
    rows = [["Deployment", "Tier", "Tokens of a rank", "Prompt tokens found", "Share"]]
    for _, row in table.iterrows():
        counts = [f"{row[name]:,}" for name in ("capacity_tokens", "hit_tokens")]
        share = metric("prefix_hit_ratio", float(row["hit_share"]), "")
        rows.append([str(row["deployment"]), str(row["tier"]), *counts, share])
    lead = (
        "Prompt tokens that requests found in each tier of the KV cache: on the GPU, and behind "
        "those in the first tier below that has them. Each data-parallel rank has its own."
    )
    return Listed("Tiers of the KV cache", lead, rows)


_LISTS: dict[str, Callable[[pd.DataFrame], Listed]] = {
    "classes": _list_classes,
    "kv_tiers": _list_kv_tiers,
}
