"""The scoreboard of ``moesim validate``: answered tables put together, and what the calibrations say of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from simulator.data import available_files
from simulator.errors import UserError
from simulator.scores import SCORE_COLUMNS, Scoreboard
from simulator.spec.calibration import Fit, load_calibration
from simulator.validation.suites import Answered

_FIT_COLUMNS = ("calibration", "table", "entry", "kind", "rows", "median", "p90", "bias", "low", "high", "command", "source")


def scoreboard(parts: Sequence[Answered], run: dict[str, Any]) -> Scoreboard:
    """Put tables together.

    Args:
        run: what :attr:`simulator.scores.Scoreboard.run` holds besides the tables that were read.
    """
    filled = [part.rows.assign(source=part.source) for part in parts if not part.rows.empty]
    rows = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=[*SCORE_COLUMNS, "source"])
    tables = [{"suite": part.suite, "source": part.source, "rows": len(part.table)} for part in parts]
    order = pd.DataFrame([entry for part in parts for entry in part.order], columns=["suite", "pairs", "right"])
    return Scoreboard({**run, "tables": tables}, rows, fits(), order)


def fits() -> pd.DataFrame:
    """A row for each fit on measurements in a calibration that is not a machine's own, with its cross-validated residuals."""
    found: list[tuple[Any, ...]] = []
    for name in available_files("cluster_configs/calibration"):
        try:
            calibration = load_calibration(name, "validate")
        except UserError:  # a machine that moesim calibrate timed, or a user's file that is of no use here
            continue
        for path, fit in _fits_in(calibration):
            if fit.kind != "assumed":
                low, high = fit.band or (np.nan, np.nan)
                numbers = (fit.num_rows, fit.median_error, fit.p90_error, fit.bias, low, high)
                values = (np.nan if number is None else float(number) for number in numbers)
                found.append((name, path[0], " ".join(path[1:]), fit.kind, *values, fit.command or "", fit.source))
    return pd.DataFrame(found, columns=list(_FIT_COLUMNS))


def _fits_in(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Fit]]:
    if isinstance(value, Fit):
        yield path, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _fits_in(entry, (*path, str(key)))
    elif isinstance(value, BaseModel):
        for key in type(value).model_fields:
            yield from _fits_in(getattr(value, key), (*path, key))
