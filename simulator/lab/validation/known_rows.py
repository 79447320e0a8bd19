"""Whether a table holds rows that the shipped calibrations were fitted on, so that errors on them
can be called in sample.

Of each table that a fit has seen, the smallest hashes of its rows are kept (a bottom-k sketch):
some kilobytes tell the whole table, any large enough part of it, or a copy in another format.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.data import search_folders
from simulator.base.reading import read_json

FILE = Path("fitted_rows.json")
"""File beside the calibrations."""
_FOLDER = "cluster_configs/calibration"
_KEPT = 192
"""Hashes of a table."""
_LEAST_HITS, _LEAST_SHARE = 2, 0.5
_SEVERAL = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no column's hash is lost."""


class Sketch(TypedDict):
    """Columns of a table, its number of rows, and the smallest hashes of them."""

    columns: list[str]
    rows: int
    keys: str
    """Smallest hashes of rows, in hexadecimal."""


def sketch(values: pd.DataFrame) -> Sketch:
    """Sketch of a table: its columns, how many rows it has, and the smallest hashes of rows.

    Args:
        values: :attr:`simulator.lab.validation.tables.Table.values`.
    """
    columns = sorted(map(str, values.columns))
    return {
        "columns": columns,
        "rows": len(values),
        "keys": " ".join(f"{key:016x}" for key in np.unique(_keys(values, columns))[:_KEPT]),
    }


def is_known(values: pd.DataFrame) -> bool:
    """Whether at least half of a table's rows are rows of one that a calibration was fitted on, as
    far as its sketch can tell.
    """
    return any(
        _overlaps(values, kept)
        for kept in _sketches()
        if set(kept["columns"]) <= set(values.columns)
    )


def _overlaps(values: pd.DataFrame, kept: Sketch) -> bool:
    known = np.array([int(key, 16) for key in kept["keys"].split()], dtype=np.uint64)
    keys = np.unique(_keys(values, kept["columns"]))
    comparable = keys[keys <= known.max()] if len(known) else keys[:0]
    hits = int(np.isin(comparable, known).sum())
    return hits >= min(_LEAST_HITS, kept["rows"]) and hits >= _LEAST_SHARE * len(comparable)


def _sketches() -> list[Sketch]:
    """Sketches of the user's own calibrations where there are some, else of those that ship."""
    paths = [folder / FILE for folder in search_folders(_FOLDER) if (folder / FILE).is_file()]
    return list(read_json(paths[0]).values()) if paths else []


def _keys(values: pd.DataFrame, columns: list[str]) -> NDArray[np.uint64]:
    """``[n]``: a hash of each row, the same however its numbers are written."""
    keys = np.zeros(len(values), dtype=np.uint64)
    for column in columns:
        keys = keys * _SEVERAL + _hashes(values[column])
        keys ^= keys >> np.uint64(29)
    return keys


def _hashes(cells: pd.Series) -> NDArray[np.uint64]:
    if pd.api.types.is_numeric_dtype(cells):
        numbers = cells.to_numpy(np.float64)
        found = pd.util.hash_array(np.where(np.isnan(numbers), 0.0, numbers))
        return np.where(np.isnan(numbers), np.uint64(0), found)
    found = pd.util.hash_array(cells.to_numpy(object))
    return np.where((cells == "").to_numpy(bool), np.uint64(0), found)
