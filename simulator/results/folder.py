"""Results folder of a run: written whole or not at all, and read back by the report."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from simulator.base.columns import Columns, ParquetParts, StoredColumns, list_frames, read_whole
from simulator.base.errors import UserError
from simulator.base.partial import hold_partial, new_path, refuse_dangling, replace_whole
from simulator.base.reading import load_file, open_file
from simulator.base.spreadsheet import restore_texts, write_csv
from simulator.config.workload import SLO
from simulator.results.columns_text import describe_columns
from simulator.results.metrics import select_judged, summarise_classes
from simulator.results.run_file import find_writer, read_run, refuse_damaged, write_run
from simulator.results.shown_steps import chrome_trace, step_text
from simulator.results.tables import TIER_COLUMNS, DeploymentRecord
from simulator.results.token_time import make_token_time


def write_long(tables: Mapping[str, Columns], path: Path) -> None:
    """Write the tables of the deployments one after another.

    Raises:
        UserError: if they have different columns.
    """
    parts = ParquetParts(path)
    written: list[str] = []
    for deployment, columns in tables.items():
        for frame in list_frames(columns):
            names = frame.columns.tolist()
            written = written or names
            if other := sorted({*written} ^ {*names}):
                raise UserError(
                    f"{path.stem} of '{deployment}': only some deployments have a column "
                    f"'{other[0]}'; add it to all of them, or to the table that frame() returns"
                )
            parts.add(frame, deployment=deployment)
    parts.close()


def read_long(path: Path, deployments: Sequence[str]) -> dict[str, Columns]:
    """Read the table of each deployment: a data frame where all are short, otherwise columns in the
    file.

    Raises:
        UserError: if it cannot be read.
        ValueError: if it is damaged.
    """
    with open_file(path) as file:
        metadata = importlib.import_module("pyarrow.parquet").read_metadata(file)
    owners = [_find_owner(metadata.row_group(place)) for place in range(metadata.num_row_groups)]
    if len(owners) <= len(deployments) or set(owners) != set(deployments):
        return _split(pd.read_parquet(load_file(path)), deployments)
    return {
        name: StoredColumns(
            open_file(path), [place for place, owner in enumerate(owners) if owner == name]
        )
        for name in deployments
    }


def _find_owner(group: Any) -> str | None:
    """Find the only deployment of a row group, as far as its statistics say."""
    found = group.column(0).statistics
    return found.min if found is not None and found.min == found.max else None


def _split(table: pd.DataFrame, deployments: Sequence[str]) -> dict[str, Columns]:
    owner = table.pop("deployment")
    return {name: table[owner == name].reset_index(drop=True) for name in deployments}


Content: TypeAlias = str | pd.DataFrame | Mapping[str, Columns]
"""Content of a file of results: a text, a table, or long tables by deployment."""
LONG_TABLES = ("requests", "steps")
SHORT_TABLES = ("moves", "ranks", "experts", "traffic", "spans")
TABLES = (*LONG_TABLES, *SHORT_TABLES)
LISTED_TABLES = ("classes", "kv_tiers")
"""Tables of a few rows that a run has where there is something to tell."""
FILES = {
    *("run.json", "summary.csv", "token_time.csv", "faults.csv", "timeline.json"),
    *(f"{name}.csv" for name in LISTED_TABLES),
    *("report.html", "comparison.html"),
    *("scores.csv", "targets.csv", "reasons.csv", "rows.parquet", "left_out.parquet"),
    *(f"{name}.parquet" for name in TABLES),
}
"""Names of files that a results folder may hold."""
_OTHERS = {
    "moesim plan": "plan.json holds its answer, which Answer.model_validate_json reads, and "
    "build_report or moesim report shows it",
    "a sweep": "the folders in its points are runs, and build_report or moesim report shows all",
    "moesim execute": "build_report or moesim report shows it",
    "a plan of training": "build_report or moesim report shows it",
    "a training": "build_report or moesim report shows it",
    "moesim sparsity": "build_report or moesim report shows it",
    "moesim validate": "its tables are CSV and Parquet files, and its report.html shows them",
}
"""Ways to open the folders of other commands."""


@dataclass(frozen=True)
class Results:
    """A finished run: its facts and its verdict, and tables of all deployments."""

    run: dict[str, Any]
    """Facts of the run as ``run.json`` has them, among them ``verdict`` (``headline`` and
    ``reasons``), ``notes``, ``deployments`` by name, the resolved ``scenario``, and how it was
    made."""
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
    """Computed pairs and times of the ranks in the shown steps, a row for each rank and MoE
    layer."""
    experts: pd.DataFrame
    """Load of the experts over the mean, a row for each expert and MoE layer."""
    traffic: pd.DataFrame
    """Bytes between ranks in the shown steps, a row for each pair of ranks and direction."""
    spans: pd.DataFrame
    """Timeline of the shown steps, a row for each thing that a rank did."""

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

    @property
    def deployments(self) -> list[str]:
        """Names of the deployments, in the scenario's order."""
        return [str(name) for name in self.summary["deployment"]]


def gather(run: dict[str, Any], summary: pd.DataFrame, records: list[DeploymentRecord]) -> Results:
    """Combine the deployments' tables."""
    requests = {record.name: record.requests for record in records}
    steps = {record.name: record.steps for record in records}
    short = {
        name: pd.concat([getattr(r, name) for r in records], ignore_index=True)
        for name in SHORT_TABLES
    }
    return Results(run=run, summary=summary, requests=requests, steps=steps, **short)


def write(results: Results, folder: Path, render: Callable[[Results], str]) -> None:
    """Write the folder under a temporary name and rename it when it is whole; an earlier run of
    that name is replaced.

    Args:
        render: makes the report's HTML.

    Raises:
        UserError: if ``folder`` exists and is not a results folder, or cannot be written; nothing
            is left behind then.
    """
    check_writable(folder)
    files = {
        "summary.csv": results.summary,
        "token_time.csv": results.token_time,
        **{f"{name}.csv": table for name in LISTED_TABLES if len(table := getattr(results, name))},
        **{f"{name}.parquet": getattr(results, name) for name in (*SHORT_TABLES, *LONG_TABLES)},
        "timeline.json": json.dumps(chrome_trace(results.spans, partial(step_text, results.run))),
        "report.html": render(results),
    }
    replace_folder(folder, partial(write_files, results.run, files))


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name, and rename it when it is whole.

    Args:
        fill: makes the folder that it is given, and writes its files.

    Raises:
        UserError: if it cannot be written; nothing is left behind then.
    """
    refuse_dangling(folder, f"--out {folder}")
    target = folder.resolve()
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with hold_partial(target.parent) as partial:
            fill(new_path(partial))
            replace_whole(partial, target)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written: {error.strerror or error}") from error
    finally:
        if not target.exists():
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def write_files(run: dict[str, Any], files: Mapping[str, Content], folder: Path) -> None:
    """Make a results folder with ``run.json`` and files by name: texts, and tables as CSV or
    Parquet.
    """
    folder.mkdir(exist_ok=True)
    write_run(run, folder)
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        elif not isinstance(content, pd.DataFrame):
            write_long(content, folder / name)
        elif name.endswith(".csv"):
            write_csv(content, folder / name)
        else:
            content.to_parquet(folder / name, index=False)


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
    labels = _labels(folders)
    renamed: list[Results] = []
    for label, (_, results) in zip(labels, runs, strict=True):
        new_name = {
            name: f"{name} ({label})" if names.count(name) > 1 else name
            for name in results.deployments
        }
        tables = {
            table: _rename(getattr(results, table), new_name)
            for table in ("summary", *SHORT_TABLES)
        }
        requests, steps = (
            {new_name[name]: columns for name, columns in long.items()}
            for long in (results.requests, results.steps)
        )
        facts = {new_name[name]: entry for name, entry in results.run["deployments"].items()}
        explained = results.run.get("explanation") or {}
        own = {
            "deployments": facts,
            "bands": _rename_bands(results.run.get("bands"), new_name),
            "explanation": {new_name[name]: entry for name, entry in explained.items()},
        }
        renamed.append(
            Results(run={**results.run, **own}, requests=requests, steps=steps, **tables)
        )
    run = {key: value for key, value in first.run.items() if key != "verdict"}
    run["name"] = " and ".join(dict.fromkeys(str(results.run["name"]) for _, results in runs))
    run["deployments"] = {
        name: entry for r in renamed for name, entry in r.run["deployments"].items()
    }
    run["explanation"] = {
        name: entry for r in renamed for name, entry in r.run["explanation"].items()
    }
    run["bands"] = {
        part: {name: entry for r in renamed for name, entry in r.run["bands"][part].items()}
        for part in _BANDS
    } | {"notes": [note for r in renamed for note in r.run["bands"]["notes"]]}
    together = {
        table: pd.concat([getattr(r, table) for r in renamed], ignore_index=True)
        for table in ("summary", *SHORT_TABLES)
    }
    requests = {name: columns for r in renamed for name, columns in r.requests.items()}
    steps = {name: columns for r in renamed for name, columns in r.steps.items()}
    return Results(run=run, requests=requests, steps=steps, **together)


_BANDS = ("sources", "requests", "deployments", "knees", "better")
"""Parts of a run's bands that are by deployment; only those of one run were drawn together."""


def _rename_bands(bands: dict[str, Any] | None, new_name: dict[str, str]) -> dict[str, Any]:
    bands = bands or {}
    found: dict[str, Any] = {
        part: {new_name[name]: one for name, one in bands.get(part, {}).items()} for part in _BANDS
    }
    found["notes"] = [
        note | {"deployment": new_name[note["deployment"]]} for note in bands.get("notes", [])
    ]
    found["better"] = {
        name: {new_name[other]: chances for other, chances in by_other.items()}
        for name, by_other in found["better"].items()
    }
    return found


def _labels(folders: list[Path]) -> list[str]:
    """Shortest ends of the folders' paths that differ."""
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _rename(table: pd.DataFrame, new_name: dict[str, str]) -> pd.DataFrame:
    return table.assign(deployment=table["deployment"].map(new_name))


def check_writable(folder: Path, others: Set[str] = frozenset()) -> None:
    """Refuse a folder that cannot be written, or holds something other than a run, before any work
    is done.

    Args:
        others: further files that may be there.

    Raises:
        UserError: with what stands in the way.
    """
    refuse_dangling(folder, f"--out {folder}")
    if folder.exists():
        if not folder.is_dir():
            raise UserError(
                f"--out {folder}: is a file; name a folder that is empty, "
                "absent or an earlier run's"
            )
        foreign = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.name not in FILES | others or not entry.is_file()
        )
        if foreign or (any(folder.iterdir()) and not (folder / "run.json").is_file()):
            holds = (
                f"holds '{foreign[0]}', which is no part of a run"
                if foreign
                else "is not a whole results folder"
            )
            raise UserError(
                f"--out {folder}: {holds}; name another folder, or remove what is in it"
            )
    ancestor = next(p for p in (folder.absolute().parent, *folder.absolute().parents) if p.exists())
    if not ancestor.is_dir():
        raise UserError(f"--out {folder}: cannot be written: {ancestor} is a file, not a folder")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"--out {folder}: cannot be written: no permission to write in {ancestor}")
    try:  # some file systems permit it and do not do it
        with hold_partial(ancestor):
            pass
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be written in {ancestor}: {error.strerror or error}"
        ) from error


def read(folder: Path) -> Results:
    """Read a results folder.

    Raises:
        UserError: if it is not one, a file is missing, or another version wrote it in another
            schema.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"{folder}: is not a results folder (no run.json in it)")
    writer = find_writer(folder)
    if writer in _OTHERS:
        raise UserError(f"{folder}: is a folder of {writer}, not of a run; {_OTHERS[writer]}")
    with refuse_damaged(folder):
        run = read_run(folder)
        names = list(run["deployments"])
        requests, steps = (read_long(folder / f"{name}.parquet", names) for name in LONG_TABLES)
        short = {
            name: pd.read_parquet(load_file(folder / f"{name}.parquet")) for name in SHORT_TABLES
        }
        summary = _read_summary(folder / "summary.csv")
        if names != list(summary["deployment"]):
            raise ValueError("run.json and summary.csv name other deployments")
    return Results(run=run, summary=summary, requests=requests, steps=steps, **short)


def _read_summary(path: Path) -> pd.DataFrame:
    """Read the table with every digit that was written, and names unchanged (``NA`` and ``1`` are
    names too).
    """
    texts = restore_texts(pd.read_csv(load_file(path), dtype=str, keep_default_na=False))
    numbers = {
        key: [float(value or "nan") for value in texts[key]]
        for key in texts.columns
        if key != "deployment"
    }
    return pd.DataFrame({"deployment": texts["deployment"], **numbers})
