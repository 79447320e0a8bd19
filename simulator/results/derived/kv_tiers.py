"""Use of the tiers of the KV cache, without rows where all deployments have the GPU only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from simulator.results.metrics import metric
from simulator.results.results_folder import TextTable

if TYPE_CHECKING:
    from simulator.results.folder import Results

COLUMNS = {
    "deployment": "name of the deployment",
    "tier": "'gpu', or the kind of a tier below it, numbered where there are several of a kind",
    "capacity_tokens": "tokens that it holds of a data-parallel rank's cache",
    "hit_tokens": (
        "prompt tokens that requests of all ranks found in it before they were first scheduled; "
        "of reads that a failure cut off, among several tiers, in proportion"
    ),
    "hit_share": "share of these in all prompt tokens",
}
"""Columns of ``kv_tiers.csv``, with their descriptions."""


def make(results: Results) -> pd.DataFrame:
    """Gather the facts of the tiers: a row for each deployment and tier."""
    uses = [(name, results.facts(name).get("kv_tiers") or ()) for name in results.deployments]
    rows = [{"deployment": name, **tier} for name, own in uses for tier in own]
    has_several = any(len(own) > 1 for _, own in uses)
    return pd.DataFrame(rows if has_several else [], columns=list(COLUMNS))


def show(table: pd.DataFrame) -> TextTable:
    """Write the table as texts."""
    rows = [["Deployment", "Tier", "Tokens of a rank", "Prompt tokens found", "Share"]]
    for _, row in table.iterrows():
        counts = [f"{row[name]:,}" for name in ("capacity_tokens", "hit_tokens")]
        share = metric("prefix_hit_ratio", float(row["hit_share"]), "")
        rows.append([str(row["deployment"]), str(row["tier"]), *counts, share])
    lead = (
        "Prompt tokens that requests found in each tier of the KV cache: on the GPU, and behind "
        "those in the first tier below that has them. Each data-parallel rank has its own."
    )
    return TextTable("Tiers of the KV cache", rows, lead)
