"""Answer of a plan of training: simulated splits, the cheapest first, and what is recommended.

| file | holds |
|---|---|
| ``run.json`` | the question as it was resolved, verdict, counts of what was ruled out |
| ``candidates.csv`` | :data:`COLUMNS`, a row a simulated split |
| ``recommended.toml`` | a scenario that ``moesim run`` takes as it is: the cheapest split of each
model that keeps the target |
| ``report.html`` | the report |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from simulator.base.findings import Finding
from simulator.base.formats import num_bytes, number, percent
from simulator.base.reading import read_text
from simulator.results.results_folder import (
    Cell,
    Content,
    ResultsFolder,
    TextTable,
    check_columns,
    read_table,
)
from simulator.results.training import find_losses

COLUMNS = {
    "model": "Name of the model in the question.",
    "is_moe": "Whether it has routed experts.",
    "cluster": "Kind of machines.",
    "num_gpus": "GPUs that train.",
    "split": "Split over the GPUs.",
    "chunks": "Chunks of layers on each pipeline stage.",
    "micro_batch": "Sequences that a data-parallel rank computes at once.",
    "recompute": "Activations that are made again.",
    "tokens": "Tokens that the model is trained on.",
    "days": "Days until then, at the stated uptime.",
    "days_low": "Low end of their 80 % band.",
    "days_high": "High end of their 80 % band.",
    "cost": "Price of the GPU-hours until then, in the cluster's currency.",
    "tokens_per_s_per_gpu": "Training tokens per second of one GPU.",
    "mfu": "Model FLOP/s over the peak of the number format.",
    "bubble_share": "Share of a step in which a stage waits for others.",
    "memory_bytes": "Bytes of the GPU that needs most.",
    "keeps_target": "Whether the days are at most those asked for.",
}
"""Columns of ``candidates.csv``, with their meaning."""
RECOMMENDED = "recommended.toml"


_SPLITS = (
    "Of each model on each number of GPUs, those in time first; candidates.csv has all that were "
    "simulated. Behind days stands their 80 % band."
)


@dataclass(frozen=True)
class TrainingAnswer(ResultsFolder):
    """Answer of a plan of training: simulated splits, and those that are recommended.

    ``run`` has ``training_question``, ``verdict``, ``ruled_out`` (counts by reason), and
    provenance.
    """

    candidates: pd.DataFrame
    """:data:`COLUMNS`, the cheapest first."""
    recommended: str | None
    """Text of ``recommended.toml``; ``None`` where no split keeps the target."""

    writer = "a plan of training"
    files = {"candidates": "candidates.csv"}
    own_files = frozenset({RECOMMENDED})

    def list_tables(self) -> list[TextTable]:
        """The cheapest splits of each model on each number of GPUs."""
        currency = self.run["currency"]
        titles = ["Split", "Days", f"Cost ({currency})", "Tokens/s per GPU", "MFU", "Bubble"]
        rows: list[list[str | Cell]] = [[*titles, "Memory", "Micro-batch", "Recomputed"]]
        for row in list_sizes(self.candidates).to_dict("records"):
            split = f"{int(row['num_gpus']):,} {row['cluster']}: {row['split']}"
            late = "" if row["keeps_target"] else " (too slow)"
            band = f"{number(row['days_low'])} to {number(row['days_high'])}"
            rows.append(
                [
                    Cell(f"{row['model']}{late}, {split}"),
                    Cell(number(row["days"]), band),
                    f"{row['cost']:,.0f}",
                    number(row["tokens_per_s_per_gpu"]),
                    percent(row["mfu"]),
                    percent(row["bubble_share"]),
                    num_bytes(row["memory_bytes"]),
                    f"{int(row['micro_batch'])}",
                    str(row["recompute"]),
                ]
            )
        return [TextTable("The cheapest splits", rows, _SPLITS)]

    def list_others(self) -> dict[str, Content]:
        """The scenario of the recommended splits."""
        return {} if self.recommended is None else {RECOMMENDED: self.recommended}

    @classmethod
    def read_files(cls, folder: Path, run: dict[str, Any]) -> Self:
        """Read the splits, and those that are recommended."""
        table, text = folder / cls.files["candidates"], folder / RECOMMENDED
        candidates = check_columns(read_table(table), COLUMNS, table.name)
        run = {"deployments": dict.fromkeys(candidates["model"])} | run  # older folders lack them
        return cls(run, candidates, read_text(text) if text.is_file() else None)

    def list_best(self) -> pd.DataFrame:
        """List the cheapest split of each model that keeps the target, the cheapest first, then
        the fastest one of each other model, the fastest first.
        """
        rows = [
            kept.iloc[[0]]
            if len(kept := own[own["keeps_target"]])
            else own.sort_values("days").iloc[[0]]
            for _, own in self.candidates.groupby("model", sort=False)
        ]
        best = pd.concat(rows)
        order = best["cost"].where(best["keeps_target"], best["days"])
        return best.loc[order.sort_values(kind="stable").index].sort_values(
            "keeps_target", ascending=False, kind="stable"
        )


def list_sizes(candidates: pd.DataFrame) -> pd.DataFrame:
    """List the cheapest split of each model on each number of GPUs of a kind, those that keep the
    target first.
    """
    best = candidates.drop_duplicates(["model", "cluster", "num_gpus"])
    return best.sort_values("keeps_target", ascending=False, kind="stable")


def find_training_answer(answer: TrainingAnswer, days: float) -> Iterator[Finding]:
    """Find a headline, how each other model compares, and what rests on the scaling law.

    Args:
        days: that were asked for.
    """
    candidates, best = answer.candidates, answer.list_best()
    first, *others = best.to_dict("records")
    most = int(candidates["num_gpus"].max())
    facts = {"first": first, "days": days, "currency": answer.run["currency"]}
    yield Finding("training_plan.cheapest", row=first, most=most, **facts)
    for row in (first, *others):
        if row["keeps_target"] and row["days_high"] > days:
            yield Finding("training_plan.may_be_late", row=row, **facts)
    for other in others:
        yield Finding("training_plan.other", row=other, **facts)

    # Where nothing keeps the target, or the best is free, another model is better by its days.
    what = "cost" if first["keeps_target"] and first["cost"] else "days"
    most_days = days if first["keeps_target"] else math.inf
    most_cost = 0.0 if first["keeps_target"] and what == "days" else math.inf

    def price(tokens: Mapping[str, float]) -> dict[str, float]:
        """Cost or days of the best split of each model."""
        ratios = candidates["model"].map(tokens) / candidates["tokens"]
        kept = (candidates["days"] * ratios <= most_days) & (candidates["cost"] <= most_cost)
        needs = (candidates[what] * ratios)[kept].groupby(candidates["model"]).min()
        return {str(name): float(one) for name, one in needs.items()}

    if "loss" in answer.facts(first["model"]):
        tokens = dict(zip(best["model"], best["tokens"], strict=True))
        yield from find_losses(answer, what, tokens, price)
