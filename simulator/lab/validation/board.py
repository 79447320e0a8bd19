"""The scoreboard of ``moesim validate``: answered tables put together, and what the calibrations
say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel
from scipy.stats import norm

from simulator.base.arrays import Floats
from simulator.base.errors import UserError
from simulator.base.progress import Progress, show_nothing
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import ANY, CalibrationFile, EngineFit, Fit
from simulator.lab.results.scores import (
    SCORE_COLUMNS,
    TARGETS,
    Scoreboard,
    Target,
)
from simulator.lab.validation import Answered
from simulator.lab.validation.hardware import accelerator_name, load_families
from simulator.lab.validation.suites import answer, answer_published, tables_in
from simulator.results.provenance import Provenance

NO_MEASUREMENTS = (
    "no tables were given, and none ship: --measurements DIR or MOESIM_MEASUREMENTS names a "
    "folder with them, and 'moesim validate kernels' and 'serving' take one file"
)


def everything(folder: Path | None, tick: Progress = show_nothing) -> Scoreboard:
    """The published figures that ship, and every table of measurements in ``folder``.

    Raises:
        UserError: if there is no such folder.
    """
    with describe_run() as run:
        found, skipped = (
            ({}, {"kernels and serving": NO_MEASUREMENTS}) if folder is None else tables_in(folder)
        )
        parts = []
        for path, suite in found.items():
            try:
                parts.append(answer(suite, path, tick))
            except UserError as error:
                skipped[path.name] = str(error).removeprefix(f"{path}: ")
        parts.append(answer_published(None, tick))
    return scoreboard(parts, {**run, "skipped": skipped})


@contextmanager
def describe_run() -> Iterator[dict[str, object]]:
    """Facts of a run for :attr:`Scoreboard.run`; its time is there at the
    end.
    """
    made = Provenance.begin()
    run = {"name": "validate"} | made.describe()
    yield run
    run |= made.describe()


def scoreboard(parts: Sequence[Answered], run: dict[str, object]) -> Scoreboard:
    """Put tables together.

    Args:
        run: what :attr:`Scoreboard.run` holds besides the tables that were
            read.
    """
    nothing = pd.DataFrame(columns=[*SCORE_COLUMNS, "source"])
    filled = [part.rows.assign(source=part.source) for part in parts if not part.rows.empty]
    rows = pd.concat(filled, ignore_index=True) if filled else nothing
    tables = [
        {
            "suite": part.suite,
            "source": part.source,
            "rows": len(part.table),
            "in_sample": part.in_sample,
            **({"unusable": part.unusable} if part.unusable else {}),
            **({"lacking": part.lacking, "spare": part.spare} if part.lacking else {}),
            **({"repeated": part.repeated} if part.repeated else {}),
        }
        for part in parts
    ]
    order = pd.DataFrame(
        [entry for part in parts for entry in part.order], columns=["suite", "pairs", "right"]
    )
    calibrations = load_families()
    fits = list_fit_residuals(calibrations)
    # What fits say of rows left out of them is no figure for a table that they have not seen: that
    # one speaks for itself.
    seen = rows[rows["source"].isin([part.source for part in parts if part.in_sample])]
    return Scoreboard(
        {**run, "tables": tables},
        rows,
        fits,
        order,
        judge_left_out(seen, calibrations, fits),
    )


def list_fit_residuals(calibrations: Mapping[str, CalibrationFile]) -> pd.DataFrame:
    """A row for each fit on measurements, with its cross-validated residuals."""
    return pd.DataFrame(
        {
            "calibration": name,
            "table": path[0],
            "entry": " ".join(path[1:]),
            "kind": fit.kind,
            "rows": fit.num_rows,
            "median": fit.median_error,
            "p90": fit.p90_error,
            "bias": fit.bias,
            "low": fit.band and fit.band[0],
            "high": fit.band and fit.band[1],
            "covered": fit.covered,
            "gpus": fit.gpus if isinstance(fit, EngineFit) else (fit.accelerator,),
            "command": fit.command or "",
            "source": fit.source,
        }
        for name, calibration in calibrations.items()
        for path, fit in _fits_in(calibration)
        if fit.kind != "assumed"
    ).astype(dict.fromkeys(("rows", "median", "p90", "bias", "low", "high", "covered"), float))


def _fits_in(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Fit]]:
    if isinstance(value, Fit):
        yield path, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _fits_in(entry, (*path, str(key)))
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _fits_in(getattr(value, key), (*path, key))


# Errors of calibrations on models, shapes and GPUs that were left out of their fits, put together
# for each target.
#
# Entries of a calibration state a median and a 90th percentile each. What a target asks is of all
# their rows, so the entries' errors are taken to be spread log-normally through those two points
# and mixed by rows: within a few per cent of the figure on all rows wherever both can be computed.


COLUMNS = ("what", "rows", "fits", "missed", "median", "p90", "covered")
"""``missed``: how many of the ``fits`` are beyond the target by themselves."""
_SUITES = {
    "grouped_gemm": {"moe", "eplb"},
    "gemm": {"gemm"},
    "attention": {"attention"},
    "latent attention": {"mla"},
    "exchange": {"alltoall"},
    "collective": {"collective"},
}
"""Suites of kernels that a table of a calibration prices; entries of latent attention are in the
table ``attention``."""
_LATENT = "mla_"
_GRID = np.geomspace(1e-4, 30.0, 6000)
_AT_90 = float(norm.ppf(0.9))


def judge_left_out(
    rows: pd.DataFrame, calibrations: Mapping[str, CalibrationFile], fits: pd.DataFrame
) -> pd.DataFrame:
    """:data:`COLUMNS` for every target that some rows are held to and some calibration says
    something of.

    Args:
        rows: :data:`SCORE_COLUMNS`; only calibrations of their GPUs are
            looked at.
        fits: :func:`simulator.lab.validation.board.list_fit_residuals`.
    """
    found, kernels = [], _list_kernel_fits(fits)
    for target in TARGETS:
        own = rows[target.select_rows(rows)]
        named = _name_calibrations(own["group"].astype(str).unique()) if len(own) else set()
        if target.suites == ("serving",):
            parts = _list_serving_fits(target, named, calibrations)
        else:
            about = [not suites.isdisjoint(target.suites) for suites in kernels["suites"]]
            parts = kernels[np.array(about, dtype=bool) & kernels["calibration"].isin(named)]
        if len(parts):
            is_beyond = (parts["median"] > target.median) | (parts["p90"] > target.p90)
            counts = int(parts["rows"].sum()), len(parts), int(is_beyond.sum())
            found.append((target.what, *counts, *mix_residuals(parts), _coverage(parts)))
    return pd.DataFrame(found, columns=list(COLUMNS))


def mix_residuals(parts: pd.DataFrame) -> tuple[float, float]:
    """Median and 90th percentile of all rows of several fits together.

    Args:
        parts: ``rows``, ``median`` and ``p90`` of each.

    >>> parts = pd.DataFrame({"rows": [10, 30], "median": [0.05, 0.05], "p90": [0.2, 0.2]})
    >>> [round(value, 3) for value in mix_residuals(parts)]
    [0.05, 0.2]
    """
    rows, medians, tails = parts[["rows", "median", "p90"]].to_numpy(float).T[:, :, None]
    middle = np.log(np.maximum(medians, _GRID[0]))
    spread = np.maximum(np.log(np.maximum(tails, _GRID[0])) - middle, 1e-3) / _AT_90
    share: Floats = (rows * norm.cdf((np.log(_GRID) - middle) / spread)).sum(axis=0) / rows.sum()
    return float(np.interp(0.5, share, _GRID)), float(np.interp(0.9, share, _GRID))


def _coverage(parts: pd.DataFrame) -> float:
    """Share of rows inside their bands, of the fits that state one."""
    stated = parts.dropna(subset=["covered"]) if "covered" in parts else parts[:0]
    return float(np.average(stated["covered"], weights=stated["rows"])) if len(stated) else np.nan


def _name_calibrations(groups: Iterable[str]) -> set[str]:
    """Names of the calibrations of the GPUs that groups begin with."""
    found = set()
    for gpu in {group.split()[0] for group in groups if group.strip()}:
        name = accelerator_name(gpu)
        try:
            found |= {load_accelerator(name, gpu).calibration} if name else set()
        except UserError:  # a user's own file that is wrong, of which the rows speak
            continue
    return found


def _list_kernel_fits(fits: pd.DataFrame) -> pd.DataFrame:
    """Fits of kernels that state their errors, with the ``suites`` that they price; of a format
    that some engine has an entry for, not the one of all engines.
    """
    found = fits[fits["table"].isin(_SUITES)].dropna(subset=["rows", "median", "p90"])
    parts = found["entry"].str.split(" ", n=1)
    found = found.assign(engine=parts.str[0], name=parts.str[1])
    alike = ["calibration", "table", "name"]
    is_any = found["engine"] == ANY
    has_engine = found.assign(own=~is_any).groupby(alike)["own"].transform("any")
    kinds = np.where(found["name"].str.startswith(_LATENT), "latent attention", found["table"])
    suites = pd.Series([_SUITES[kind] for kind in kinds], index=found.index, dtype=object)
    return found.assign(suites=suites)[~(is_any & has_engine)]


def _list_serving_fits(
    target: Target, named: set[str], calibrations: Mapping[str, CalibrationFile]
) -> pd.DataFrame:
    key = f"{target.quantity} {target.word}".strip()
    found = [
        calibrations[name].engine[ANY].left_out.get(key)
        for name in sorted(named & set(calibrations))
        if ANY in calibrations[name].engine
    ]
    return pd.DataFrame(filter(None, found), columns=["rows", "median", "p90"])
