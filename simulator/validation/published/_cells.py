"""Numbers in the cells of a table that people filled in."""

from __future__ import annotations

import math

import pandas as pd

from simulator.base.errors import UserError


def number(row: pd.Series, column: str) -> float:
    """The finite number in a cell; not a number where there is none."""
    try:
        value = float(str(row.get(column)))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def whole(row: pd.Series, column: str) -> int:
    """The whole number from 1 on in a cell.

    Raises:
        UserError: if there is none.
    """
    value = number(row, column)
    if not (value >= 1 and value == round(value)):
        raise UserError(f"{column} must be a whole number from 1 on, is '{row.get(column)}'")
    return int(value)
