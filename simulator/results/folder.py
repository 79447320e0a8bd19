"""Results of a run, and several of them in one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd

from simulator.base.columns import Columns, read_whole
from simulator.base.errors import UserError
from simulator.base.formats import UNDEFINED
from simulator.config.workload import SLO
from simulator.results.availability import OF_CHANGES
from simulator.results.metrics import (
    METRICS,
    describe_columns,
    metric,
    select_judged,
    summarise_classes,
)
from simulator.results.results_folder import (
    Content,
    ResultsFolder,
    TextTable,
    read_long,
    read_table,
)
from simulator.results.shown_steps import chrome_trace, step_text
from simulator.results.tables import TIER_COLUMNS, DeploymentRecord
from simulator.results.token_time import make_token_time

LONG_TABLES = ("requests", "steps")
SHORT_TABLES = ("moves", "ranks", "experts", "traffic", "spans")
TABLES = (*LONG_TABLES, *SHORT_TABLES)
LISTED_TABLES = ("classes", "kv_tiers")
"""Tables of a few rows that a run has where there is something to tell."""


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
        found = {
            name: getattr(self, name).dropna(axis="columns", how="all") for name in LISTED_TABLES
        }
        return [_LISTS[name](table) for name, table in found.items() if len(table)]

    def list_others(self) -> dict[str, Content]:
        """``token_time.csv``, tables of a few rows, and the timeline."""
        listed = {name: getattr(self, name) for name in LISTED_TABLES}
        timeline = chrome_trace(self.spans, partial(step_text, self))
        return {
            "token_time.csv": self.token_time,
            **{f"{name}.csv": table for name, table in listed.items() if len(table)},
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
    def token_time(self) -> pd.DataFrame:
        """Table of the time of an output token: :data:`simulator.results.token_time.COLUMNS`."""
        return make_token_time(self.requests, self.steps, self.moves)

    @cached_property
    def classes(self) -> pd.DataFrame:
        """Table of requests by priority: :data:`simulator.results.metrics.CLASS_COLUMNS`, without
        rows where all have the same.
        """
        slo = SLO(**(self.run.get("slo") or {}))
        return summarise_classes(self.requests, slo, self._num_lead_in)

    @cached_property
    def kv_tiers(self) -> pd.DataFrame:
        """Table of the tiers of the KV cache: :data:`simulator.results.tables.TIER_COLUMNS`,
        without rows where all deployments have the GPU only.
        """
        facts = ((name, self.run["deployments"].get(name, {})) for name in self.deployments)
        uses = [(name, own.get("kv_tiers") or ()) for name, own in facts]
        rows = [{"deployment": name, **tier} for name, own in uses for tier in own]
        has_several = any(len(own) > 1 for _, own in uses)
        return pd.DataFrame(rows if has_several else [], columns=list(TIER_COLUMNS))

    def frame(self, table: str) -> pd.DataFrame:
        """One table of all deployments, whose first column is ``deployment``.

        Args:
            table: ``summary`` (a row for each deployment), ``classes`` (a row for each deployment
                and priority, where requests differ in that), ``kv_tiers`` (a row for each
                deployment and tier of its cache), ``requests`` (a row for each request),
                ``steps`` (a row for each step of an engine, or run of equal ones), ``token_time``,
                ``ranks``, ``experts``, ``traffic``, ``spans`` or ``moves``.
                :func:`describe_columns` tells the meaning and unit of their columns.

        Raises:
            UserError: if there is no such table.
        """
        columns = list(describe_columns(table))
        if table not in LONG_TABLES:
            frame: pd.DataFrame = getattr(self, table)
            return frame
        long: Mapping[str, Columns] = getattr(self, table)
        parts = [read_whole(rows).assign(deployment=name) for name, rows in long.items()]
        return pd.concat(parts, ignore_index=True)[columns]

    def select_judged(self, deployment: str) -> Columns:
        """Requests of a deployment without those of the lead-in, which are not judged."""
        return select_judged(self.requests[deployment], self._num_lead_in)

    @property
    def _num_lead_in(self) -> int:
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


def _list_classes(table: pd.DataFrame) -> TextTable:
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


def _list_kv_tiers(table: pd.DataFrame) -> TextTable:
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


_LISTS: dict[str, Callable[[pd.DataFrame], TextTable]] = {
    "classes": _list_classes,
    "kv_tiers": _list_kv_tiers,
}
