"""Results folder of ``moesim execute``: measurements and predictions of the same steps of the same
plans.

| file | holds |
|---|---|
| ``run.json`` | resolved scenario, seed, versions, machine, and per deployment its facts and the
steps whose timelines are kept (:class:`ShownTimeline`) |
| ``summary.csv`` | ``SUMMARY_COLUMNS``, a row a deployment and kind of step |
| ``steps.parquet`` | ``STEP_COLUMNS``, a row a measured or predicted step |
| ``ranks.parquet`` | ``RANK_COLUMNS``: what each rank computed |
| ``spans.parquet`` | ``SPAN_COLUMNS``, the timeline of a step of each kind at the median of their
times, measured and predicted |
| ``faults.csv`` | what went wrong, and how long it took to go on |
| ``timeline.json`` | the spans in Chrome's trace format; opens in Perfetto |
| ``report.html`` | the report |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.base.reading import load_file
from simulator.base.spreadsheet import restore_texts
from simulator.results.folder import check_writable, replace_folder, write_files
from simulator.results.phases import STEP_PHASES
from simulator.results.run_file import read_run, refuse_damaged
from simulator.results.shown_steps import chrome_trace, shown_step
from simulator.results.tables import ExpertsMoved, ReplicasChanged
from simulator.work.uniform_load import UniformImbalance

_LONG = ("steps", "ranks", "spans")
"""Tables that are written as Parquet."""
KINDS = {"prompt": "prompts", "decode": "decode"}
"""Kinds of step, with their names for people."""
SOURCES = ("measured", "predicted")
BUSY = 0.1
"""Share of a machine's cores above which their use by other programs is mentioned: measured steps
vary by as much by themselves."""
OFF_PACE = 0.05
"""Share by which a machine's times may differ from its calibration's before that is mentioned:
calibrations in a row differ by as much."""
STEP_COLUMNS = {
    "deployment": "name of the deployment",
    "kind": "'prompt' or 'decode'",
    "source": "'measured' or 'predicted'",
    "number": "number of the step",
    "tokens": "new tokens over all ranks",
    "duration_s": "from telling the ranks to start until all are done",
    **{f"{phase}_s": f"part of the step, mean over ranks: {phase}" for phase in STEP_PHASES},
}
RANK_COLUMNS = {
    "deployment": "name of the deployment",
    "kind": "'prompt' or 'decode'",
    "number": "number of the step",
    "rank": "rank",
    "layer": "index among the MoE layers",
    "num_pairs": "token-expert pairs that the rank computed",
    "num_rows": "hidden vectors that it sent to other ranks",
}
SUMMARY_COLUMNS = {
    "deployment": "name of the deployment",
    "kind": "'prompt' or 'decode'",
    "tokens_per_s": "measured: new tokens of a step over its median duration",
    "predicted_tokens_per_s": "the same, predicted",
    "step_s": "median duration of a measured step",
    "predicted_step_s": "the same, predicted",
    "error": "predicted over measured duration, less one",
    "idle_error": (
        "the same, had the ranks had the cores that other programs took beyond what they took "
        "while the machine was calibrated: the error on an idle machine is likely between the two"
    ),
    "others_share": "share of the cores that other programs took during the measured steps",
    "calibrated_others_share": "share that they took while the machine was calibrated",
    "largest_difference": (
        "largest difference between a hidden value of the distributed run and of the "
        "one-process reference"
    ),
    "num_parameters": "parameters of the model; of a pruned one, those that are left",
    "num_active_parameters": "parameters that a token uses",
}


@dataclass(frozen=True)
class ShownTimeline:
    """Step of one kind whose timeline is kept; under ``shown_steps`` of the deployment in
    ``run.json``.
    """

    number: int
    """Number of the step at the median of the measured times of its kind."""
    uniform_imbalance: UniformImbalance | None
    """Imbalance that uniform routing gives at the kind's tokens by chance; ``None`` for a dense
    model."""


@dataclass(frozen=True)
class ExecutedMove(ExpertsMoved):
    """Experts that moved for real between two steps; under ``rebalances`` of the deployment in
    ``run.json``. Seconds, copies and bytes are measured.
    """

    step: int = 0
    """Number of the step before which they moved, of the first part where they moved in several."""
    predicted_s: float = 0.0
    """Seconds that the simulator prices the move at."""


@dataclass(frozen=True)
class ExecutedChange(ReplicasChanged):
    """Ranks that were lost for real or came back; under ``changes`` of the deployment in
    ``run.json``. Times are those of the deployment's clock.
    """

    step: int = 0
    """Number of the step that was running, or came next."""
    ranks: tuple[int, ...] = ()
    """Ranks that were lost or came back, by their number when all were there."""
    seconds: float = 0.0
    """Measured seconds: from the loss until all others had noticed it (``hangs``), from there until
    they had formed a new group (``shrinks``, and ``grows`` likewise), or of a start of all ranks
    (``starts``)."""
    predicted_s: float = 0.0
    """Seconds that the recovery policy gives for that."""
    loaded_bytes: float = 0.0
    """Bytes of experts that the rank which lacked most of them loaded."""


@dataclass(frozen=True)
class ExecutedCache:
    """Experts in memory and on disk that the measured steps of one kind used; under ``caches`` of
    the deployment in ``run.json``.
    """

    kind: str
    """``prompt`` or ``decode``."""
    used: int
    """Experts that steps used, over all steps and layers."""
    held: int
    """Experts of these that were in memory."""
    hit_rate: float
    """Share of these that were in memory."""
    predicted_hit_rate: float
    """Share by the replay that predictions rest on."""
    read_bytes: float
    """Bytes that were read from the disk."""
    read_s: float
    """Measured seconds of these reads."""
    predicted_read_s: float
    """Seconds that the simulator prices them at."""


@dataclass(frozen=True)
class Executed:
    """A finished execution: measured steps beside predicted ones, and how they were made."""

    run: dict[str, Any]
    """Facts of the execution as ``run.json`` has them, among them the machine, ``deployments`` by
    name, the resolved ``scenario``, and how it was made."""
    summary: pd.DataFrame
    """Metrics of each deployment and kind of step, measured and predicted."""
    steps: pd.DataFrame
    """Durations and phases in seconds, a row for each measured or predicted step."""
    ranks: pd.DataFrame
    """Computed pairs and sent vectors, a row for each step, rank and MoE layer."""
    spans: pd.DataFrame
    """``SPAN_COLUMNS`` of :mod:`simulator.results.tables`; ``phase`` is ``"<kind>, <source>"``."""
    faults: pd.DataFrame
    """Faults, a row for each, with the seconds that recovery took."""

    @property
    def deployments(self) -> list[str]:
        """Names of the deployments, in the scenario's order."""
        return list(dict.fromkeys(str(name) for name in self.summary["deployment"]))


def describe_load(executed: Executed) -> str | None:
    """Warn where other programs took more of the cores than while the machine was calibrated;
    ``None`` where they did not.
    """
    more = executed.summary["others_share"] - executed.summary["calibrated_others_share"]
    if not (more >= BUSY).any():
        return None
    worst = executed.summary.iloc[int(more.fillna(0.0).to_numpy().argmax())]
    return (
        f"Other programs took up to {worst['others_share']:.0%} of the cores while steps were "
        f"measured ({worst['calibrated_others_share']:.0%} while the machine was calibrated), so "
        "steps took longer than on an idle machine; each error is given up to what it would be "
        "with those cores. Run it again when the machine is idle."
    )


def describe_pace(deployments: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Warn where the machine is faster or slower than when it was calibrated; ``None`` where it is
    not.

    Args:
        deployments: facts of each, as ``run.json`` has them; of earlier versions without a pace.

    >>> describe_pace({"a": {"pace": 1.04}, "of an earlier version": {}})
    >>> describe_pace({"a": {"pace": 1.04}, "b": {"pace": 0.8}})[:33]
    'Matrix products took 0.80 times a'
    """
    paces = [facts.get("pace", 1.0) for facts in deployments.values()]
    worst = max(paces, key=lambda pace: abs(math.log(pace)), default=1.0)
    if abs(math.log(worst)) < math.log1p(OFF_PACE):
        return None
    return (
        f"Matrix products took {worst:.2f} times as long as when the calibration was made, and "
        "predictions are stretched by as much. Calibrate again if that lasts."
    )


def write(executed: Executed, folder: Path, render: Callable[[Executed], str]) -> None:
    """Write the folder whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    check_writable(folder)
    trace = chrome_trace(executed.spans, partial(_title_spans, executed.run))
    files = {
        "summary.csv": executed.summary,
        "faults.csv": executed.faults,
        **{f"{name}.parquet": getattr(executed, name) for name in _LONG},
        "timeline.json": json.dumps(trace),
        "report.html": render(executed),
    }
    replace_folder(folder, partial(write_files, executed.run, files))


def _title_spans(run: dict[str, Any], deployment: str, phase: str) -> str:
    kind, source = phase.split(", ")
    return f"{KINDS[kind]}, step {shown_step(run, deployment, kind)['number']}, {source}"


def read(folder: Path) -> Executed:
    """Read a results folder of ``moesim execute``.

    Raises:
        UserError: if a file is missing or damaged, or another version wrote it in another schema.
    """
    with refuse_damaged(folder):
        return Executed(
            run=read_run(folder),
            summary=restore_texts(
                pd.read_csv(
                    load_file(folder / "summary.csv"), keep_default_na=False, na_values=["nan", ""]
                )
            ),
            faults=restore_texts(pd.read_csv(load_file(folder / "faults.csv"))),
            **{name: pd.read_parquet(load_file(folder / f"{name}.parquet")) for name in _LONG},
        )
