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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.base.errors import UserError
from simulator.base.findings import Finding
from simulator.base.reading import load_file, read_text
from simulator.base.spreadsheet import restore_texts
from simulator.results.folder import Content, check_writable, replace_folder, write_files
from simulator.results.run_file import find_writer, read_run, refuse_damaged

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
_FILES = frozenset({"candidates.csv", RECOMMENDED})


@dataclass(frozen=True)
class TrainingAnswer:
    """Answer of a plan of training: simulated splits, and those that are recommended."""

    run: dict[str, Any]
    """``training_question``, ``verdict``, ``ruled_out`` (counts by reason), and how it was made."""
    candidates: pd.DataFrame
    """:data:`COLUMNS`, the cheapest first."""
    recommended: str | None
    """Text of ``recommended.toml``; ``None`` where no split keeps the target."""

    def list_best(self) -> pd.DataFrame:
        """List the cheapest split of each model that keeps the target, else its fastest one."""
        rows = [
            kept.iloc[[0]]
            if len(kept := own[own["keeps_target"]])
            else own.sort_values("days").iloc[[0]]
            for _, own in self.candidates.groupby("model", sort=False)
        ]
        return pd.concat(rows).sort_values(["keeps_target", "cost"], ascending=[False, True])


def list_sizes(candidates: pd.DataFrame) -> pd.DataFrame:
    """List the cheapest split of each model on each number of GPUs of a kind, those that keep the
    target first.
    """
    best = candidates.drop_duplicates(["model", "cluster", "num_gpus"])
    return best.sort_values("keeps_target", ascending=False, kind="stable")


def find_training_answer(
    candidates: pd.DataFrame, answer: TrainingAnswer, days: float, currency: str
) -> Iterator[Finding]:
    """Find a headline, and how each other model compares.

    Args:
        days: that were asked for.
    """
    first, *others = answer.list_best().to_dict("records")
    facts: dict[str, Any] = {"first": first, "days": days, "currency": currency}
    most = int(candidates["num_gpus"].max())
    yield Finding("training_plan.cheapest", row=first, most=most, **facts)
    for other in others:
        yield Finding("training_plan.other", row=other, **facts)


def check_answer_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, or holds something other than results.

    Raises:
        UserError: with what stands in the way.
    """
    own = find_writer(folder) == "a plan of training"
    check_writable(folder, _FILES if own else frozenset())


def write_training_answer(
    answer: TrainingAnswer, folder: Path, render: Callable[[TrainingAnswer], str]
) -> None:
    """Write the folder under a temporary name and rename it when it is whole.

    Raises:
        UserError: if ``folder`` exists and is not a results folder, or cannot be written.
    """
    check_answer_writable(folder)
    files: dict[str, Content] = {
        "candidates.csv": answer.candidates,
        "report.html": render(answer),
    }
    if answer.recommended is not None:
        files[RECOMMENDED] = answer.recommended
    replace_folder(folder, partial(write_files, answer.run, files))


def read_training_answer(folder: Path) -> TrainingAnswer:
    """Read a folder.

    Raises:
        UserError: if a file is missing or broken, or another version wrote it in another schema.
    """
    with refuse_damaged(folder, "folder of a plan of training"):
        run = read_run(folder)
        if "training_question" not in run:
            raise UserError(f"{folder}: holds no plan of training")
        table = restore_texts(
            pd.read_csv(load_file(folder / "candidates.csv"), na_values=[""], keep_default_na=False)
        )
        if missing := set(COLUMNS) - set(table.columns):
            raise ValueError(f"candidates.csv lacks {', '.join(sorted(missing))}")
        text = folder / RECOMMENDED
        recommended = read_text(text) if text.is_file() else None
    return TrainingAnswer(run, table, recommended)
