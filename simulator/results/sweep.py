"""Results of a sweep: a row for each point and deployment, and for each setting the mean and the
spread over seeds.

| file | holds |
|---|---|
| ``sweep.csv`` | the swept keys, ``point``, ``seed``, ``deployment`` and
:data:`simulator.results.metrics.METRICS` |
| ``run.json`` | the keys, the points with what each says, and how the sweep was made |
| ``points/*`` | a results folder a point |
| ``report.html`` | the report |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.base.reading import load_file
from simulator.base.spreadsheet import restore_texts
from simulator.results.folder import FILES, write_files
from simulator.results.metrics import METRICS
from simulator.results.run_file import find_writer, read_run, refuse_damaged

TABLE = "sweep.csv"
_PARTS = {"run.json", TABLE, "report.html", "points"}
_FIXED = ("point", "seed", "deployment")


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its points, and the metrics of each point and deployment."""

    run: dict[str, Any]
    """``run.json``: ``keys`` (swept keys by name, each with its values in order), ``points`` (a
    dict each: ``point``, the keys' values, ``seed``, and either ``winner`` and ``headline`` or
    ``refusal``), ``name``, ``deployments`` by name, and how it was made."""
    table: pd.DataFrame
    """Contents of ``sweep.csv``."""

    @property
    def keys(self) -> dict[str, list[Any]]:
        """Values of each swept key, in the order in which they were given."""
        found: dict[str, list[Any]] = self.run["keys"]
        return found

    @property
    def deployments(self) -> list[str]:
        """Names of all deployments, in order of appearance."""
        return list(dict.fromkeys(self.table["deployment"].astype(str)))

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Combinations of the keys' values that some point has, each once for all its seeds."""
        found = {
            repr([point[key] for key in self.keys]): {key: point[key] for key in self.keys}
            for point in self.run["points"]
        }
        return list(found.values())

    def rows_at(self, setting: Mapping[str, Any]) -> pd.DataFrame:
        """Rows of a setting, all seeds and deployments."""
        names = {point["point"] for point in self.points_at(setting)}
        return self.table[self.table["point"].isin(names)]

    def points_at(self, setting: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Points of a setting, one for each seed."""
        return [
            point
            for point in self.run["points"]
            if all(point[key] == value for key, value in setting.items())
        ]


def measure_spread(rows: pd.DataFrame, metric: str) -> tuple[float, float, int]:
    """Mean of a metric over seeds, its standard deviation (with n - 1; NaN of one seed), and number
    of seeds with a value.

    >>> measure_spread(pd.DataFrame({"ttft_p50_s": [1.0, 3.0, np.nan]}), "ttft_p50_s")
    (2.0, 1.4142135623730951, 2)
    """
    values = rows[metric].dropna().to_numpy(np.float64)
    if not len(values):
        return np.nan, np.nan, 0
    spread = float(values.std(ddof=1)) if len(values) > 1 else np.nan
    return float(values.mean()), spread, len(values)


def order_columns(table: pd.DataFrame, keys: Mapping[str, Any]) -> pd.DataFrame:
    """Order the columns for ``sweep.csv``."""
    return table[["point", *keys, "seed", "deployment", *METRICS]]


def check_writable(folder: Path) -> None:
    """Refuse a folder that holds something other than a sweep, before any work is done.

    Raises:
        UserError: with what stands in the way.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(
            f"--out {folder}: is a file; name a folder that is empty, absent or an earlier sweep's"
        )
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in _PARTS)
    points = folder / "points"
    foreign += sorted(f"points/{name}" for name in _list_foreign(points)) if points.is_dir() else []
    if foreign or (any(folder.iterdir()) and find_writer(folder) != "a sweep"):
        what = f"holds '{foreign[0]}', which is no part of" if foreign else "is not"
        raise UserError(
            f"--out {folder}: {what} a sweep; name another folder, or remove what is in it"
        )


def _list_foreign(points: Path) -> Iterator[str]:
    """Yield files among the points that are not part of a run."""
    for entry in points.iterdir():
        if not entry.is_dir():
            yield entry.name
            continue
        yield from (
            f"{entry.name}/{file.name}" for file in entry.iterdir() if file.name not in FILES
        )


def write_point(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """Write the folder of a point, and release its files.

    Args:
        folder: folder of the sweep.
    """
    if files:
        own = folder / "points" / name
        own.mkdir(parents=True)
        for file, content in files.items():
            (own / file).write_bytes(content)
        files.clear()


def write(sweep: Sweep, folder: Path, page: str) -> None:
    """Write the files over all points into the folder."""
    write_files(sweep.run, {TABLE: sweep.table, "report.html": page}, folder)


def read(folder: Path) -> Sweep:
    """Read a sweep's folder.

    Raises:
        UserError: if a file is missing or broken, or another version wrote it in another schema.
    """
    with refuse_damaged(folder, "folder of a sweep"):
        run = read_run(folder)
        table = restore_texts(
            pd.read_csv(
                load_file(folder / TABLE),
                dtype=dict.fromkeys(("point", "deployment"), str),
                na_values=[""],
                keep_default_na=False,
            )
        )
        if missing := {*_FIXED, *METRICS, *run["keys"]} - set(table.columns):
            raise ValueError(f"{TABLE} lacks {', '.join(sorted(missing))}")
    return Sweep(run, table)
