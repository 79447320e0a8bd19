"""Measured rows, answered as those of somebody whose model, GPU or release is in no fit.

Whole groups are left out in turn. A process of its own fits without the group's rows, lays the
calibrations into a folder that it starts in, as a user's own, and answers the rows from there.
Engines and pools are fitted anew. Kernels of a GPU that is left out are priced by those of another
one that was timed. Errors of kernels on shapes and models that were left out are in the
calibrations already.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.arrays import Bools
from simulator.base.data import available_files, shipped_folder
from simulator.base.machine import count_cores
from simulator.base.progress import Progress, show_nothing
from simulator.base.writing import toml_text
from simulator.config.calibration import ANY
from simulator.config.calibration.engine import Unseen
from simulator.lab.calibration.serving import disaggregation, engine
from simulator.lab.results.scores import SCORE_COLUMNS
from simulator.lab.validation.hardware import accelerator_name, load_families
from simulator.lab.validation.kernels import Tables
from simulator.lab.validation.serving import groups
from simulator.lab.validation.serving.deployments import accelerator_of, deployment_of
from simulator.lab.validation.suites import PUBLISHED, SERVING, answer
from simulator.lab.validation.tables import read_table

COLUMNS = (*SCORE_COLUMNS, "source", "rival", "case", "without")
"""``case``: what was left out (``model``, ``gpu`` or ``release``); ``without``: which one."""
_CALIBRATIONS = "cluster_configs/calibration"
_FOLDERS = ("workloads", "cluster_configs")
"""Folders of a user's own files."""
_UNREADABLE = "unreadable"


class Simulated(NamedTuple):
    """Serving points that the tables ``engine`` and ``disaggregation`` are fitted on."""

    points: engine.Points
    pools: list[disaggregation.Loaded]

    @classmethod
    def simulate(cls, table: pd.DataFrame, workers: int | None = None) -> Simulated:
        """Simulate every point of a table that can be."""
        return cls(engine.simulate(table, workers), disaggregation.load_points(table, workers))

    def leave_out(self, held: Bools) -> Simulated:
        """Leave out rows of the table."""
        pools = [one for one in self.pools if not held[one.place]]
        return Simulated(self.points.where(~held[self.points.place]), pools)

    def fit(self) -> dict[str, Tables]:
        """Entries by table, calibration and engine."""
        return {
            "engine": engine.fit_points(self.points),
            "disaggregation": disaggregation.fit_points(self.pools),
        }


class Stranger(NamedTuple):
    """A group of rows that is left out."""

    suite: str
    source: str
    case: Unseen
    name: str
    table: pd.DataFrame
    """All rows, as they stand in the file."""
    held: Bools
    """Rows of the group."""
    seen: Simulated | None = None
    """Serving points, of which the group's are not looked at; ``None``: to be simulated, with
    ``kernels``."""
    kernels: dict[str, str] = {}
    """Calibrations whose kernels were timed on the GPU that is left out, and whose are taken."""


def answer_left_out(
    tables: Sequence[tuple[str, str]], tick: Progress = show_nothing
) -> pd.DataFrame:
    """Answer every row of tables that the calibrations were fitted on, its group left out:
    :data:`COLUMNS`.

    Args:
        tables: suite and file of each.

    Raises:
        UserError: if a table cannot be read.
    """
    found: list[pd.DataFrame] = []
    strangers = [one for suite, source in tables for one in list_strangers(suite, Path(source))]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count_cores(), mp_context=spawn, max_tasks_per_child=1) as pool:
        tasks = [pool.submit(answer_stranger, one) for one in strangers]
        try:
            for number, task in enumerate(as_completed(tasks), 1):
                found.append(task.result())
                tick("groups left out", number, len(tasks))
        except BaseException:  # an interrupt does not wait for groups that have not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    nothing = pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(found, ignore_index=True) if found else nothing


def list_strangers(suite: str, path: Path) -> Iterator[Stranger]:
    """The groups of a table, each to be left out."""
    read = read_table(path)
    timed = _list_timed()
    if suite == SERVING:
        simulated = Simulated.simulate(read.values)
        for case, names in _name_rows(read.values).items():
            for name in sorted(set(names) - {""}):
                held = names == name
                kernels = _replace_kernels(name, timed) if case == "gpu" else {}
                seen = None if kernels else simulated.leave_out(held)
                yield Stranger(suite, str(path), case, name, read.texts, held, seen, kernels)
    elif suite != PUBLISHED and "gpu" in read.texts.columns:
        gpus = np.array([accelerator_name(gpu) or "" for gpu in read.texts["gpu"]], dtype=object)
        for gpu in sorted(set(gpus) & set(timed)):
            kernels = _replace_kernels(gpu, timed)
            if kernels:
                yield Stranger(
                    suite, str(path), "gpu", gpu, read.texts, gpus == gpu, kernels=kernels
                )


def _name_rows(values: pd.DataFrame) -> dict[Unseen, NDArray[np.object_]]:
    """Groups of every row of serving points; empty where a row does not say its release."""
    found: dict[Unseen, NDArray[np.object_]] = {
        case: np.full(len(values), _UNREADABLE, dtype=object)
        for case in ("model", "gpu", "release")
    }
    made, _ = groups(values)
    for group in made:
        for place, point in zip(group.rows, group.points, strict=True):
            file, gpu = deployment_of(point).spec.model, accelerator_of(point).name
            names = engine.name_groups(file, gpu, point.engine, point.version)
            for case, name in names.items():
                found[case][place] = name
    return found


def _list_timed() -> dict[str, str]:
    """GPUs whose kernels were timed, and their calibrations."""
    return {
        fit.accelerator: name
        for name, file in load_families().items()
        for fit in file.gemm[ANY].values()
        if fit.accelerator
    }


def _replace_kernels(gpu: str, timed: dict[str, str]) -> dict[str, str]:
    """The calibration whose kernels were timed on ``gpu``, and one that was timed on another."""
    others = sorted(set(timed.values()) - {timed.get(gpu)})
    return {timed[gpu]: others[0]} if gpu in timed and others else {}


def answer_stranger(stranger: Stranger) -> pd.DataFrame:
    """Answer the rows of a group in a process of its own, whose folder it leaves."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        files = available_files(_CALIBRATIONS)
        _copy_own_files(home, Path(folder))
        os.chdir(folder)
        try:
            for name in set(_list_timed().values()):
                _copy_calibration(files[stranger.kernels.get(name, name)], name)
            return _answer(stranger)
        finally:
            os.chdir(home)


def _answer(stranger: Stranger) -> pd.DataFrame:
    held = stranger.table[stranger.held]
    if stranger.suite == SERVING:
        seen_file = Path("seen.csv")
        stranger.table[~stranger.held].to_csv(seen_file, index=False)
        seen = stranger.seen or Simulated.simulate(read_table(seen_file).values, 1)
        _write_fits(seen.fit())
    file = Path("held.csv")
    held.to_csv(file, index=False)
    rows = answer(stranger.suite, file, workers=1).rows
    if "rival" not in rows.columns:
        rows = rows.assign(rival="")
    return rows.assign(source=stranger.source, case=stranger.case, without=stranger.name)


def _write_fits(tables: dict[str, Tables]) -> None:
    """Write fits into the calibrations of the folder; one without any has another's."""
    for name in set(_list_timed().values()):
        for table, found in tables.items():
            path = Path(_CALIBRATIONS) / name / f"{table}.toml"
            path.unlink(missing_ok=True)
            if found:
                entries = found.get(name, next(iter(found.values())))
                path.write_text(toml_text(entries, ""), encoding="utf-8")


def _copy_calibration(source: Path, name: str) -> None:
    folder = Path(_CALIBRATIONS)
    shutil.copy(source, folder / f"{name}.toml")
    if source.with_suffix("").is_dir():
        shutil.copytree(source.with_suffix(""), folder / name)


def _copy_own_files(home: Path, folder: Path) -> None:
    """Copy a user's own models and machines, but no calibrations."""
    (folder / _CALIBRATIONS).mkdir(parents=True)
    for name in _FOLDERS if home != shipped_folder() else ():
        if (home / name).is_dir():
            shutil.copytree(
                home / name,
                folder / name,
                ignore=shutil.ignore_patterns("calibration"),
                dirs_exist_ok=True,
            )
