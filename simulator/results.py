"""The results folder of a run: written whole or not at all, and read back by the report.

| file | holds |
|---|---|
| ``run.json`` | resolved scenario, seed, versions, source revision, wall time, verdict, and per deployment its facts |
| ``requests.parquet``, ``steps.parquet``, ``ranks.parquet``, ``experts.parquet``, ``traffic.parquet``, ``spans.parquet`` | :mod:`simulator.records`, all deployments in one table each |
| ``summary.csv`` | :mod:`simulator.metrics`, a row a deployment |
| ``timeline.json`` | the spans in Chrome's trace format; opens in Perfetto |
| ``report.html`` | the report |
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.errors import UserError
from simulator.records import DeploymentRecord

TABLES = ("requests", "steps", "ranks", "experts", "traffic", "spans")


@dataclass(frozen=True)
class Results:
    """A run as it lies in its folder."""

    run: dict[str, Any]
    """``run.json``."""
    summary: pd.DataFrame
    """``summary.csv``: a row a deployment, in the scenario's order."""
    requests: pd.DataFrame
    steps: pd.DataFrame
    ranks: pd.DataFrame
    experts: pd.DataFrame
    traffic: pd.DataFrame
    spans: pd.DataFrame

    @property
    def deployments(self) -> list[str]:
        """Names of the deployments, in the scenario's order."""
        return [str(name) for name in self.summary["deployment"]]


def gather(run: dict[str, Any], summary: pd.DataFrame, records: list[DeploymentRecord]) -> Results:
    """Put the deployments' tables together."""
    tables = {name: pd.concat([getattr(r, name) for r in records], ignore_index=True) for name in TABLES}
    return Results(run=run, summary=summary, **tables)


def write(results: Results, folder: Path, render: Callable[[Results], str]) -> None:
    """Write the folder under a temporary name and rename it when it is whole; an earlier run of that name is replaced.

    Args:
        render: makes the report's HTML.

    Raises:
        UserError: if ``folder`` exists and is not a results folder, or cannot be written.
    """
    check_writable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".moesim-partial-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        (partial / "run.json").write_text(json.dumps(results.run, indent=1, allow_nan=False) + "\n")
        results.summary.to_csv(partial / "summary.csv", index=False)
        for name in TABLES:
            getattr(results, name).to_parquet(partial / f"{name}.parquet", index=False)
        (partial / "timeline.json").write_text(json.dumps(chrome_trace(results.spans)))
        (partial / "report.html").write_text(render(results))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def merge(runs: list[tuple[Path, Results]]) -> Results:
    """Several runs as one, for one report. Deployments of one name are told apart by their folder's.

    Raises:
        UserError: if the runs served different requests, which no comparison survives.
    """
    first = runs[0][1]
    if len(runs) == 1:
        return first
    names = [name for _, results in runs for name in results.deployments]
    renamed: list[Results] = []
    for folder, results in runs:
        if results.run["workload"] != first.run["workload"]:
            raise UserError(
                f"{folder}: served other requests than {runs[0][0]}; only runs of one workload and seed can be compared"
            )
        new_name = {name: f"{name} ({folder.name})" if names.count(name) > 1 else name for name in results.deployments}
        tables = {table: _rename(getattr(results, table), new_name) for table in ("summary", *TABLES)}
        facts = {new_name[name]: entry for name, entry in results.run["deployments"].items()}
        renamed.append(Results(run={**results.run, "deployments": facts}, **tables))
    run = {**first.run, "deployments": {name: entry for r in renamed for name, entry in r.run["deployments"].items()}}
    together = {table: pd.concat([getattr(r, table) for r in renamed], ignore_index=True) for table in ("summary", *TABLES)}
    return Results(run=run, **together)


def _rename(table: pd.DataFrame, new_name: dict[str, str]) -> pd.DataFrame:
    return table.assign(deployment=table["deployment"].map(new_name))


def check_writable(folder: Path) -> None:
    """Refuse a folder that holds something other than a run, before any work is done.

    Raises:
        UserError: with what stands in the way.
    """
    if folder.exists() and not (folder / "run.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: exists and is not a results folder; name another, or remove it")
    ancestor = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise UserError(f"--out {folder}: cannot be written")


def read(folder: Path) -> Results:
    """Read a results folder.

    Raises:
        UserError: if it is not one, or a file is missing.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder}: is not a results folder (no run.json in it)")
    try:
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        summary = pd.read_csv(folder / "summary.csv")
        run = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: is not a whole results folder: {error}") from error
    return Results(run=run, summary=summary, **tables)


def chrome_trace(spans: pd.DataFrame) -> dict[str, Any]:
    """The spans in Chrome's trace-event format: a process a deployment and step, a thread a rank, microseconds."""
    events: list[dict[str, Any]] = []
    for number, ((deployment, phase), group) in enumerate(spans.groupby(["deployment", "phase"], sort=False)):
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": f"{deployment}: {phase} step"}})
        for rank in sorted(group["rank"].unique()):
            thread = {"ph": "M", "pid": number, "tid": int(rank), "name": "thread_name", "args": {"name": f"rank {rank}"}}
            events.append(thread)
        columns = (group[column].tolist() for column in ("rank", "name", "layer", "start_s", "duration_s"))
        for rank, name, layer, start_s, duration_s in zip(*columns, strict=True):
            event = {"ph": "X", "pid": number, "tid": int(rank), "name": name, "cat": name}
            event |= {"ts": start_s * 1e6, "dur": duration_s * 1e6, "args": {"layer": int(layer)}}
            events.append(event)
    return {"traceEvents": events, "displayTimeUnit": "ms"}
