"""Results of training scenarios: a row of metrics for each deployment, and the timeline of a step.

| file | holds |
|---|---|
| ``run.json`` | resolved scenario, seed, versions, verdict, and facts of each deployment |
| ``summary.csv`` | :data:`METRICS`, a row a deployment |
| ``spans.parquet`` | what each stage does in a step |
| ``timeline.json`` | these spans in Chrome's trace format; opens in Perfetto |
| ``report.html`` | the report |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from simulator.base.errors import UserError
from simulator.base.reading import load_file
from simulator.base.spreadsheet import restore_texts
from simulator.results.chrome_trace import chrome_trace
from simulator.results.folder import Content, check_writable, replace_folder, write_files
from simulator.results.run_file import read_run, refuse_damaged

PARTS = (
    "attention",
    "dense",
    "experts",
    "dispatch",
    "combine",
    "collective",
    "wait",
    "gradients",
    "optimizer",
    "bubble",
)
"""Parts of a step, which add up to it on every stage: computation of attention, of blocks that
every token passes, and of routed experts; exchanges with experts; exchanges between tensor- and
context-parallel ranks; waiting for the busiest rank; gradients and weights on their way between
data-parallel ranks that nothing hides; the optimizer; and waiting for other stages."""
MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations")
"""Components of a GPU's memory."""


class Metric(NamedTuple):
    """Number that people compare."""

    label: str
    unit: str
    definition: str


METRICS = {
    "tokens_per_s_per_gpu": Metric(
        "Tokens/s per GPU", "tokens/s", "Training tokens per second of one GPU."
    ),
    "tokens_per_s": Metric("Tokens/s", "tokens/s", "Training tokens per second of all GPUs."),
    "flops_per_s_per_gpu": Metric(
        "Model FLOP/s per GPU",
        "FLOP/s",
        "Three times the FLOPs of a forward pass, per second of one GPU; what is computed again "
        "does not count.",
    ),
    "mfu": Metric(
        "MFU", "ratio", "Model FLOP/s over the peak of the number format that matrices compute in."
    ),
    "step_s": Metric("Step", "s", "Seconds from one step to the next."),
    "bubble_share": Metric(
        "Pipeline bubble", "ratio", "Share of a step in which a stage waits for others, mean."
    ),
    "imbalance": Metric(
        "Expert load imbalance",
        "x",
        "Token-expert pairs of the busiest rank over the mean rank's, mean over layers.",
    ),
    "dropped_share": Metric(
        "Dropped pairs", "ratio", "Share of token-expert pairs that found no room."
    ),
    "memory_bytes": Metric("Memory of a GPU", "B", "Bytes of the GPU that needs most."),
    "tokens": Metric("Tokens to train on", "tokens", "Training tokens of the whole training."),
    "days": Metric("Days", "days", "Days to train on all tokens, at the stated uptime."),
    "gpu_hours": Metric("GPU-hours", "h", "Hours of all GPUs together until then."),
    "cost": Metric("Cost", "currency", "Price of these hours."),
}
"""Columns of ``summary.csv`` behind ``deployment``, in order."""


@dataclass(frozen=True)
class TrainingResults:
    """Simulated training of several deployments."""

    run: dict[str, Any]
    """Facts as ``run.json`` has them, among them ``verdict`` (``headline`` and ``reasons``),
    ``notes``, ``deployments`` by name, and the resolved ``scenario``."""
    summary: pd.DataFrame
    """:data:`METRICS`, a row for each deployment; NaN where one is undefined."""
    spans: pd.DataFrame
    """Timeline of one step: ``deployment``, ``phase`` (always ``step``), ``rank`` (the stage),
    ``name``, ``layer`` (the micro-batch), ``start_s``, ``duration_s``."""

    @property
    def deployments(self) -> list[str]:
        """Names of the deployments, in the scenario's order."""
        return [str(name) for name in self.summary["deployment"]]


def write_training(
    results: TrainingResults, folder: Path, render: Callable[[TrainingResults], str]
) -> None:
    """Write the folder under a temporary name and rename it when it is whole.

    Raises:
        UserError: if ``folder`` exists and is not a results folder, or cannot be written.
    """
    check_writable(folder)
    files: dict[str, Content] = {
        "summary.csv": results.summary,
        "spans.parquet": results.spans,
        "timeline.json": json.dumps(chrome_trace(results.spans, lambda *_: "a training step")),
        "report.html": render(results),
    }
    replace_folder(folder, partial(write_files, results.run, files))


def read_training(folder: Path) -> TrainingResults:
    """Read a folder.

    Raises:
        UserError: if a file is missing or broken, or another version wrote it in another schema.
    """
    with refuse_damaged(folder, "folder of a training"):
        run = read_run(folder)
        if "training" not in run:
            raise UserError(f"{folder}: holds no training")
        table = pd.read_csv(
            load_file(folder / "summary.csv"),
            dtype={"deployment": str},
            na_values=[""],
            keep_default_na=False,
        )
        spans = pd.read_parquet(load_file(folder / "spans.parquet"))
    return TrainingResults(run, restore_texts(table), spans)
