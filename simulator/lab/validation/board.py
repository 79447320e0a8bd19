"""The scoreboard of ``moesim validate``: answered tables put together, and what the calibrations
say of themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.progress import Progress, show_nothing
from simulator.base.spreadsheet import write_csv
from simulator.config.calibration import CalibrationFile, EngineFit, Fit, load_calibration
from simulator.lab.results.judgement import judge_targets
from simulator.lab.results.scores import SCORE_COLUMNS, Scoreboard, reasons, score_groups
from simulator.lab.validation import Answered
from simulator.lab.validation.left_out import judge_left_out
from simulator.lab.validation.suites import answer, answer_published, tables_in
from simulator.results.provenance import Provenance
from simulator.results.results_folder import replace_folder, write_run

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
def describe_run() -> Iterator[dict[str, Any]]:
    """Facts of a run for :attr:`Scoreboard.run`; its time is there at the
    end.
    """
    made = Provenance.begin()
    run = {"name": "validate"} | made.describe()
    yield run
    run |= made.describe()


def scoreboard(parts: Sequence[Answered], run: dict[str, Any]) -> Scoreboard:
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
    calibrations = _calibrations()
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


def _calibrations() -> dict[str, CalibrationFile]:
    """Calibrations of accelerator families, by name."""
    found = {}
    for name in available_files("cluster_configs/calibration"):
        try:
            found[name] = load_calibration(name, "validate")
        except (
            UserError
        ):  # a machine that moesim calibrate timed, or a user's file that is of no use here
            continue
    return found


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


def write(board: Scoreboard, folder: Path, render: Callable[[Scoreboard], str]) -> None:
    """Write ``run.json``, ``scores.csv``, ``targets.csv``, ``reasons.csv``, ``rows.parquet``,
    ``report.html`` and, where groups were left out, ``left_out.parquet``, or nothing.

    Args:
        render: makes the report's HTML.

    Raises:
        UserError: if the folder cannot be written.
    """
    page = render(board)
    why = [
        reasons(board.rows, status).assign(status=status)
        for status in ("unsupported", "extrapolated")
    ]

    def fill(new: Path) -> None:
        new.mkdir()
        write_run(board.run, new)
        write_csv(score_groups(board.rows), new / "scores.csv", float_format="%.6g")
        write_csv(judge_targets(board), new / "targets.csv")
        write_csv(pd.concat(why, ignore_index=True), new / "reasons.csv")
        board.rows.to_parquet(new / "rows.parquet", index=False)
        if len(board.unseen):
            board.unseen.to_parquet(new / "left_out.parquet", index=False)
        (new / "report.html").write_text(page, encoding="utf-8")

    replace_folder(folder, fill)


def _fits_in(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Fit]]:
    if isinstance(value, Fit):
        yield path, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _fits_in(entry, (*path, str(key)))
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _fits_in(getattr(value, key), (*path, key))
