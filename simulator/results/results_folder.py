"""Results folders: facts in ``run.json``, tables, further files and a page. One class writes and
reads all kinds of them, whole or not at all.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NotRequired, Self, TypeAlias, TypedDict

import pandas as pd

from simulator import __version__
from simulator.base.columns import Columns, ParquetParts, StoredColumns, list_frames
from simulator.base.errors import UserError
from simulator.base.findings import Finding, Said, rank
from simulator.base.partial import hold_partial, new_path, refuse_dangling, replace_whole
from simulator.base.plugins import available
from simulator.base.reading import load_file, open_file, read_bytes
from simulator.base.spreadsheet import restore_texts, write_csv
from simulator.results.tables import LONG_TABLES, SHORT_TABLES

SCHEMA = 12
"""Schema of the folders that this version writes, and the only one that it reads: it counts up
whenever a file, a column or a key that a reader needs is added, renamed or given another meaning.
Folders that name none have schema 1."""
_FILE = "run.json"
_KEY = "schema"
_SIGNS = {
    "plan.json": "moesim plan",
    "sweep.csv": "a sweep",
    "scores.csv": "moesim validate",
    "machine": "moesim execute",
    "training_question": "a plan of training",
    "training": "a training",
    "sparsity": "moesim sparsity",
    "claims": "moesim claims",
}
"""Commands other than ``moesim run``, by a file that only their folders have, or by a key of
``run.json``."""
_HOW_TO_OPEN = {
    "moesim plan": "plan.json holds its answer, which Answer.model_validate_json reads, and "
    "build_report or moesim report shows it",
    "a sweep": "the folders in its points are runs, and build_report or moesim report shows all",
    "moesim validate": "its tables are CSV and Parquet files, and its report.html shows them",
}
"""Ways to open the folders of some commands; others are just shown."""
FILES = frozenset(
    {
        *("run.json", "report.html", "comparison.html", "timeline.json"),
        *(f"{name}.csv" for name in ("summary", "faults", *available("results.derived"))),
        *(f"{name}.parquet" for name in (*LONG_TABLES, *SHORT_TABLES)),
        *("scores.csv", "targets.csv", "reasons.csv", "rows.parquet", "left_out.parquet"),
    }
)
"""Names of files that any results folder may hold."""
_TEXTS = ("deployment", "point", "model", "ranks")
"""Columns that are texts, whatever stands in them: ``NA`` and ``1`` are names too."""


def find_writer(folder: Path) -> str:
    """Command whose results folder this is, as :data:`_SIGNS` tell; ``moesim run`` where nothing
    does.
    """
    for sign, command in _SIGNS.items():
        if (folder / sign).is_file():
            return command
    try:
        run = json.loads(read_bytes(folder / _FILE))
    except (UserError, ValueError):
        run = {}
    keys = run if isinstance(run, dict) else {}
    return next((command for sign, command in _SIGNS.items() if sign in keys), "moesim run")


@contextmanager
def refuse_damaged(folder: Path, writer: str) -> Iterator[None]:
    """Turn an error of reading a folder of a command into one that says that it is not whole."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        what = f"is not a whole results folder of {writer}"
        raise UserError(f"{folder}: {what}: {reason}") from error


def write_run(run: dict[str, Any], folder: Path) -> None:
    """Write ``run.json``.

    Raises:
        ValueError: if it holds a number that JSON does not have.
    """
    text = json.dumps({_KEY: SCHEMA, **run}, indent=1, allow_nan=False)
    (folder / _FILE).write_text(text + "\n", encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """Read the table that :func:`write_run` was given.

    Raises:
        UserError: if it cannot be read, or another version wrote it in another schema.
        ValueError, TypeError: if it is no JSON object.
    """
    run = json.loads(read_bytes(folder / _FILE))
    if not isinstance(run, dict):
        raise TypeError(f"{_FILE} holds no object")
    written = run.pop(_KEY, 1)
    if written != SCHEMA:
        raise UserError(f"{folder}: {_describe_other(written, run)}")
    return run


def _describe_other(written: object, run: dict[str, Any]) -> str:
    """Describe which version wrote another schema, which schema is read now, and the remedy."""
    versions = run.get("versions")
    writer = versions.get("moesim") if isinstance(versions, dict) else None
    revision = f" (revision {run['revision']})" if run.get("revision") else ""
    by = f"moesim {writer}{revision}" if writer else "another version of moesim"
    again = f" ({run['command']})" if run.get("command") else ""
    return (
        f"{by} wrote it in schema {written}, and this moesim {__version__} reads schema {SCHEMA}: "
        f"make it again{again}, or read it with the version that wrote it"
    )


class Verdict(TypedDict):
    """Findings in sentences, as ``run.json`` has them."""

    headline: str
    reasons: list[str]
    findings: NotRequired[list[dict[str, str]]]
    """Kind, severity, and section of the page of each reason."""
    winner: NotRequired[str | None]
    """Better deployment of a run; ``None`` for a tie, a trade-off or a single one."""
    chance: NotRequired[float | None]
    """Probability that it is better; ``None`` where none was drawn."""
    ranking: NotRequired[list[str]]
    """Deployments of a run, the best first."""


def make_verdict(findings: Iterable[Finding | str]) -> Verdict:
    """Write findings as sentences: the first as the headline, the others by severity, each once."""
    headline, *others = (one if isinstance(one, Finding) else Said(one) for one in findings)
    reasons = {str(one): one for one in rank(others)}
    kinds = [
        {"kind": one.kind, "severity": one.severity, "section": one.section}
        for one in reasons.values()
    ]
    return {"headline": str(headline), "reasons": list(reasons), "findings": kinds}


Content: TypeAlias = str | pd.DataFrame | Mapping[str, Columns]
"""Content of a file of results: a text, a table, or long tables by deployment."""


class Cell(NamedTuple):
    """Cell of a table that has more than its text."""

    text: str
    hint: str = ""
    """Hint below the text, such as its band."""
    metric: str = ""
    """Metric that it is a value of."""
    raw: float = math.nan
    """The value as a number."""
    is_best: bool = False

    def __str__(self) -> str:
        return self.text


class TextTable(NamedTuple):
    """Table as texts, for the page and for the console."""

    title: str
    rows: Sequence[Sequence[str | Cell]]
    """Titles of the columns, and the rows, each under its own title."""
    lead: str = ""
    """Sentence above it on the page."""

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, with every text as a cell."""
        return [[one if isinstance(one, Cell) else Cell(one) for one in row] for row in self.rows]


@dataclass(frozen=True)
class ResultsFolder:
    """Facts and tables of one command, as its results folder holds them."""

    run: dict[str, Any]
    """Facts as ``run.json`` has them, among them how they were made."""

    writer: ClassVar[str] = "moesim run"
    """Command that writes such folders, of those that :func:`find_writer` tells apart."""
    files: ClassVar[Mapping[str, str]] = {}
    """Files of tables by field."""
    own_files: ClassVar[frozenset[str]] = frozenset()
    """Names of further files that an earlier folder of the same command may hold, some in folders
    of it (``serve/server.sh``)."""

    @property
    def deployments(self) -> list[str]:
        """Names of the deployments, in the scenario's order."""
        return list(self.run.get("deployments", {}))

    def facts(self, name: str) -> dict[str, Any]:
        """Facts of ``run.json`` about a deployment; empty where it has none."""
        return dict(self.run.get("deployments", {}).get(name) or {})

    @property
    def verdict(self) -> Verdict:
        """Findings in sentences."""
        found: Verdict = self.run["verdict"]
        return found

    def list_tables(self) -> list[TextTable]:
        """Tables for people."""
        return []

    def list_others(self) -> dict[str, Content]:
        """Files besides ``run.json``, the tables and the page, by name."""
        return {}

    @classmethod
    def list_foreign(cls, folder: Path) -> list[str]:
        """Files of a folder that the command did not write."""
        own = cls.own_files if find_writer(folder) == cls.writer else frozenset()
        known = {folder / name for name in FILES | own | frozenset(cls.files.values())}
        inner = {one.parent for one in known if one.parent.is_dir()}
        entries = {one for place in inner for one in place.iterdir()} - (inner - {folder})
        foreign = (one for one in entries if one not in known or not one.is_file())
        return sorted(one.relative_to(folder).as_posix() for one in foreign)

    @classmethod
    def check_writable(cls, folder: Path) -> None:
        """Refuse a folder that cannot be written, or holds something else, before any work is done.

        Raises:
            UserError: with what stands in the way.
        """
        refuse_dangling(folder, f"--out {folder}")
        if folder.exists():
            cls._check_contents(folder)
        _check_place(folder)

    @classmethod
    def _check_contents(cls, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(
                f"--out {folder}: is a file; name a folder that is empty, absent or an earlier one "
                f"of {cls.writer}"
            )
        if foreign := cls.list_foreign(folder):
            holds = f"holds '{foreign[0]}', which is no part of a folder of {cls.writer}"
        elif any(folder.iterdir()) and not (folder / _FILE).is_file():
            holds = "is not a whole results folder"
        else:
            return
        raise UserError(f"--out {folder}: {holds}; name another folder, or remove what is in it")

    def write(self, folder: Path, render: Callable[[Self], str] | None = None) -> None:
        """Write the folder under a temporary name and rename it when it is whole; an earlier one is
        replaced.

        Args:
            render: makes the page; ``None`` = none.

        Raises:
            UserError: if ``folder`` holds something else, or cannot be written; nothing is left
                behind then.
        """
        self.check_writable(folder)
        page = {} if render is None else {"report.html": render(self)}
        replace_folder(folder, partial(self.write_files, others=self.list_others() | page))

    def write_files(self, folder: Path, others: Mapping[str, Content]) -> None:
        """Write ``run.json``, the tables, and other files by name into a folder."""
        tables = {file: getattr(self, name) for name, file in self.files.items()}
        folder.mkdir(exist_ok=True)
        write_run(self.run, folder)
        for name, content in {**tables, **others}.items():
            _write_file(content, folder / name)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder.

        Raises:
            UserError: if it is none of this command, a file is missing or damaged, or another
                version wrote it in another schema.
        """
        if not (folder / _FILE).is_file():
            raise UserError(f"{folder}: is not a results folder (no {_FILE} in it)")
        if (writer := find_writer(folder)) != cls.writer:
            how = _HOW_TO_OPEN.get(writer, "build_report or moesim report shows it")
            raise UserError(f"{folder}: is a folder of {writer}, not of {cls.writer}; {how}")
        with refuse_damaged(folder, cls.writer):
            return cls.read_files(folder, read_run(folder))

    @classmethod
    def read_files(cls, folder: Path, run: dict[str, Any]) -> Self:
        """Read what the folder holds besides ``run.json``, whose facts are given.

        Raises:
            OSError, ValueError, KeyError, TypeError, UserError: if a file is missing or damaged.
        """
        return cls(run, **{name: read_table(folder / file) for name, file in cls.files.items()})


def _write_file(content: Content, path: Path) -> None:
    """Write a text (that of a script to be run), or a table as CSV or Parquet."""
    if isinstance(content, str):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        if path.suffix == ".sh":
            path.chmod(path.stat().st_mode | 0o111)
    elif not isinstance(content, pd.DataFrame):
        write_long(content, path)
    elif path.suffix == ".csv":
        write_csv(content, path)
    else:
        content.to_parquet(path, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Read a table with every digit that was written, and texts unchanged."""
    if path.suffix == ".parquet":
        return pd.read_parquet(load_file(path))
    return restore_texts(
        pd.read_csv(
            load_file(path),
            dtype=dict.fromkeys(_TEXTS, str),
            keep_default_na=False,
            na_values=[""],
        )
    )


def check_columns(table: pd.DataFrame, columns: Iterable[str], file: str) -> pd.DataFrame:
    """Refuse a table without some of its columns.

    Raises:
        ValueError: naming them.
    """
    if missing := {*columns} - {*table.columns}:
        raise ValueError(f"{file} lacks {', '.join(sorted(missing))}")
    return table


def _check_place(folder: Path) -> None:
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
