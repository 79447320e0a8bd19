"""Results of a run, and several of them in one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd

from simulator.base.columns import Columns, read_whole
from simulator.base.errors import UserError, check_known
from simulator.base.plugins import available, load_kind
from simulator.results.metrics import METRICS, select_judged
from simulator.results.results_folder import (
    Content,
    ResultsFolder,
    TextTable,
    read_long,
    read_table,
)
from simulator.results.sampled_steps import chrome_trace, step_text
from simulator.results.tables import LONG_TABLES, SHORT_TABLES, DeploymentRecord

TABLES = (*LONG_TABLES, *SHORT_TABLES)
_DERIVED: dict[str, Any] = {
    name: load_kind("results.derived", name) for name in available("results.derived")
}
COLUMNS = {
    "summary": {
        "deployment": "name of the deployment",
        **{
            name: f"{metric.definition} [{metric.unit}]" if metric.unit else metric.definition
            for name, metric in METRICS.items()
        },
    },
    **LONG_TABLES,
    **SHORT_TABLES,
    **{name: module.COLUMNS for name, module in _DERIVED.items()},
}
"""Columns of every table of a run, with their descriptions, by name."""


def describe_columns(table: str) -> dict[str, str]:
    """Meaning and unit of each column of a table of :meth:`Results.frame`.

    Times are seconds of virtual time since the first arrival.

    Raises:
        UserError: if there is no such table.

    >>> describe_columns("requests")["first_token_s"]
    'first output token [s]'
    >>> describe_columns("summary")["tpot_p50_s"]
    'time per output token, median over judged requests [s]'
    """
    check_known(table, COLUMNS, "unknown table")
    return {name: _add_unit(name, text) for name, text in COLUMNS[table].items()}


def _add_unit(name: str, text: str) -> str:
    """The text with the unit that the end of the column's name stands for."""
    return f"{text} [s]" if name.endswith("_s") and not text.endswith("]") else text


@dataclass(frozen=True)
class Results(ResultsFolder):
    """A finished run: its facts and its verdict, and tables of all deployments.

    ``run`` has ``verdict``, ``notes``, ``deployments`` by name, the resolved ``scenario``, and
    provenance.
    """

    summary: pd.DataFrame
    """Metrics, a row for each deployment, in the scenario's order; NaN where one is undefined."""
    requests: Mapping[str, Columns]
    """Columns of each deployment's requests, a row for each request; :meth:`frame` gives one
    table."""
    steps: Mapping[str, Columns]
    """Columns of each deployment's engine steps, a row for each step or run of equal ones;
    :meth:`frame` gives one table."""
    moves: pd.DataFrame
    """Requests whose replica stopped, a row for each time."""
    ranks: pd.DataFrame
    """Computed pairs and times of the ranks in the sampled steps, a row for each rank and MoE
    layer."""
    experts: pd.DataFrame
    """Load of the experts over the mean, a row for each expert and MoE layer."""
    traffic: pd.DataFrame
    """Bytes between ranks in the sampled steps, a row for each pair of ranks and direction."""
    spans: pd.DataFrame
    """Timeline of the sampled steps, a row for each thing that a rank did."""

    files = {"summary": "summary.csv", **{name: f"{name}.parquet" for name in TABLES}}

    def list_tables(self) -> list[TextTable]:
        """Tables of a few rows, as far as they have any."""
        return [
            _DERIVED[name].show(table.dropna(axis="columns", how="all"))
            for name, table in self.listed.items()
        ]

    def list_others(self) -> dict[str, Content]:
        """Tables that follow from others, and the timeline."""
        always = [name for name, module in _DERIVED.items() if not hasattr(module, "show")]
        derived = {name: self.frame(name) for name in always} | self.listed
        timeline = chrome_trace(self.spans, partial(step_text, self))
        return {
            **{f"{name}.csv": table for name, table in derived.items()},
            "timeline.json": json.dumps(timeline),
        }

    @classmethod
    def read_files(cls, folder: Path, run: dict[str, Any]) -> Self:
        """Read the tables, long ones by deployment."""
        names = list(run["deployments"])
        summary = read_table(folder / cls.files["summary"])
        if names != list(summary["deployment"]):
            raise ValueError("run.json and summary.csv name other deployments")
        requests, steps = (read_long(folder / cls.files[name], names) for name in LONG_TABLES)
        short = (read_table(folder / cls.files[name]) for name in SHORT_TABLES)
        return cls(run, summary, requests, steps, *short)

    @cached_property
    def listed(self) -> dict[str, pd.DataFrame]:
        """Tables of a few rows by name, without those that have none."""
        shown = [name for name, module in _DERIVED.items() if hasattr(module, "show")]
        return {name: table for name in shown if len(table := self.frame(name))}

    @cached_property
    def _made(self) -> dict[str, pd.DataFrame]:
        """Tables of :mod:`simulator.results.derived` that were asked for, by name."""
        return {}

    def frame(self, table: str) -> pd.DataFrame:
        """One table of all deployments, whose first column is ``deployment``.

        Args:
            table: one of :data:`COLUMNS`, such as ``summary`` (a row for each deployment) or
                ``requests``; :func:`describe_columns` tells the meaning and unit of its columns.

        Raises:
            UserError: if there is no such table.
        """
        columns = list(describe_columns(table))
        if table in _DERIVED:
            if table not in self._made:
                self._made[table] = _DERIVED[table].make(self)
            return self._made[table]
        if table not in LONG_TABLES:
            frame: pd.DataFrame = getattr(self, table)
            return frame
        long: Mapping[str, Columns] = getattr(self, table)
        parts = [read_whole(rows).assign(deployment=name) for name, rows in long.items()]
        return pd.concat(parts, ignore_index=True)[columns]

    def select_judged(self, deployment: str) -> Columns:
        """Requests of a deployment without those of the lead-in, which are not judged."""
        return select_judged(self.requests[deployment], self.num_lead_in)

    @property
    def num_lead_in(self) -> int:
        """Requests at the beginning that are not judged."""
        return int((self.run.get("workload") or {}).get("num_lead_in", 0))

    @property
    def is_open(self) -> bool:
        """Whether requests arrived by the clock (open loop), not when others ended."""
        return (self.run.get("workload") or {}).get("concurrency") is None


def gather(run: dict[str, Any], summary: pd.DataFrame, records: list[DeploymentRecord]) -> Results:
    """Combine the deployments' tables."""
    requests = {record.name: record.requests for record in records}
    steps = {record.name: record.steps for record in records}
    return Results(run, summary, requests, steps, *_concatenate(records))


def merge(runs: list[tuple[Path, Results]]) -> Results:
    """Merge several runs into one, for one report. Deployments of the same name are distinguished
    by their folder's.

    The verdict is left out, being about one run's deployments only.

    Raises:
        UserError: if a folder is named twice, or the runs served different requests or made other
            promises, which no comparison survives.
    """
    (first_folder, first), *others = runs
    if not others:
        return first
    folders = [folder.resolve() for folder, _ in runs]
    for number, (folder, results) in enumerate(runs):
        if folders[number] in folders[:number]:
            raise UserError(f"{folder}: is named twice")
        if results.run["workload"] != first.run["workload"]:
            raise UserError(
                f"{folder}: served other requests than {first_folder}; "
                "only runs of one workload and seed can be compared"
            )
        if results.run["slo"] != first.run["slo"]:
            raise UserError(
                f"{folder}: had other latency targets than {first_folder}; "
                "run it again with the same [workload.slo]"
            )
    names = [name for _, results in runs for name in results.deployments]
    renamed = [
        _rename(
            results,
            {
                name: f"{name} ({label})" if names.count(name) > 1 else name
                for name in results.deployments
            },
        )
        for label, (_, results) in zip(_labels(folders), runs, strict=True)
    ]
    run = {key: value for key, value in first.run.items() if key != "verdict"}
    run["name"] = " and ".join(dict.fromkeys(str(results.run["name"]) for _, results in runs))
    for key in ("deployments", "explanation"):
        run[key] = _join(one.run[key] for one in renamed)
    bands = [one.run["bands"] for one in renamed]
    run["bands"] = {part: _join(one[part] for one in bands) for part in _BANDS}
    run["bands"]["notes"] = [note for one in bands for note in one["notes"]]
    return Results(
        run,
        pd.concat([one.summary for one in renamed], ignore_index=True),
        _join(one.requests for one in renamed),
        _join(one.steps for one in renamed),
        *_concatenate(renamed),
    )


_T = TypeVar("_T")


def _join(parts: Iterable[Mapping[str, _T]]) -> dict[str, _T]:
    return {name: entry for part in parts for name, entry in part.items()}


def _concatenate(parts: Sequence[Results | DeploymentRecord]) -> list[pd.DataFrame]:
    """Concatenate each of the short tables."""
    return [
        pd.concat([getattr(one, name) for one in parts], ignore_index=True) for name in SHORT_TABLES
    ]


_BANDS = ("sources", "requests", "deployments", "knees", "better")
"""Parts of a run's bands that are by deployment; only those of one run were drawn together."""


def _rename(results: Results, new_name: dict[str, str]) -> Results:
    """Rename the deployments of a run."""

    def rename(entries: Mapping[str, _T]) -> dict[str, _T]:
        return {new_name[name]: entry for name, entry in entries.items()}

    bands = results.run.get("bands") or {}
    own = {
        "deployments": rename(results.run["deployments"]),
        "explanation": rename(results.run.get("explanation") or {}),
        "bands": {part: rename(bands.get(part, {})) for part in _BANDS}
        | {
            "better": rename({name: rename(one) for name, one in bands.get("better", {}).items()}),
            "notes": [
                note | {"deployment": new_name[note["deployment"]]}
                for note in bands.get("notes", [])
            ],
        },
    }
    summary, *short = (
        table.assign(deployment=table["deployment"].map(new_name))
        for table in (results.summary, *_concatenate([results]))
    )
    requests, steps = rename(results.requests), rename(results.steps)
    return Results(results.run | own, summary, requests, steps, *short)


def _labels(folders: list[Path]) -> list[str]:
    """Shortest ends of the folders' paths that differ."""
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]
