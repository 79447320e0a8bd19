"""Requests by priority, without rows where all have the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from simulator.base.formats import UNDEFINED
from simulator.config.workload import SLO
from simulator.results.availability import OF_CHANGES
from simulator.results.metrics import CLASS_COLUMNS, METRICS, metric, summarise_classes
from simulator.results.results_folder import TextTable

if TYPE_CHECKING:
    from simulator.results.folder import Results

COLUMNS = CLASS_COLUMNS


def make(results: Results) -> pd.DataFrame:
    """Summarise the judged requests: a row for each deployment and priority."""
    slo = SLO(**(results.run.get("slo") or {}))
    return summarise_classes(results.requests, slo, results.num_lead_in)


def show(table: pd.DataFrame) -> TextTable:
    """Write the table as texts."""
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
    return TextTable("By priority", rows, lead)
