"""Tables of measurements as people have them: CSV, gzipped or not, and Parquet, told by what is in
them and not by their names.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.base.reading import open_file
from simulator.base.spreadsheet import restore_texts, write_csv
from simulator.base.unpacking import unpack

ENDINGS = (".csv", ".csv.gz", ".parquet")
"""Ends of names of files to write, which say their format; read is whatever a file holds."""
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
"""First bytes of a file."""
Format = Literal["CSV", "gzipped CSV", "Parquet"]
_TEXTS = re.compile(
    r"(^|_)(backend|distribution|dtype|engine|gpu|id|kernel|mode|model|name|path|phase|precision"
    r"|source|system|type|ver|version)(_|$)"
)
"""A column with one of these in its name holds texts, also where they look like numbers: version
0.10 is not 0.1."""

_ABSURD = 1e15
"""Largest number of a cell: no count or time is larger, and whole numbers up to it are exact."""


@dataclass(frozen=True)
class Table:
    """A file's rows twice."""

    texts: pd.DataFrame
    """Cells as they stand in the file, to be written out again digit for digit."""
    values: pd.DataFrame
    """Columns of numbers, which are finite or not a number where a cell is empty, does not fit its
    column or is absurd; and columns of texts, which are empty where a cell is."""


def format_of(path: Path) -> Format:
    """Format of a file by its first bytes; the name may say something else."""
    with open_file(path) as file:
        first = file.read(4)
    return "Parquet" if first == _PARQUET else "gzipped CSV" if first.startswith(_GZIP) else "CSV"


def read_table(path: Path, most_rows: int | None = None) -> Table:
    """Read a table of measurements, whatever it is called.

    Args:
        most_rows: leave out what comes after so many.

    Raises:
        UserError: if there is no such file, it cannot be read as what it is, or it has no rows.
    """
    what, data = format_of(path), io.BytesIO(unpack(path))
    try:
        if what == "Parquet":
            texts = pd.read_parquet(data)
            texts = texts if most_rows is None else texts.head(most_rows)
        else:
            texts = pd.read_csv(
                data, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=most_rows
            )
    except (OSError, ValueError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as {what}: {reason}") from error
    if what != "Parquet" and not isinstance(
        texts.index, pd.RangeIndex
    ):  # pandas would take the first columns for names of rows
        raise UserError(f"{path}: rows have more cells than the first line names columns")
    if texts.empty:
        raise UserError(f"{path}: has no rows, read as {what}")
    if what != "Parquet":
        texts = restore_texts(texts)
    texts.columns = [str(name).strip() for name in texts.columns]
    if twice := _twice(list(texts.columns) if what == "Parquet" else _header(data)):
        raise UserError(f"{path}: two columns are called '{twice}'; rename one")
    return Table(texts, values_of(texts))


def _header(data: io.BytesIO) -> list[str]:
    """The first line's names as they stand there: pandas would tell equal ones apart by numbers."""
    data.seek(0)
    first = pd.read_csv(
        data, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=1, header=None
    )
    return [str(name).strip() for name in first.iloc[0]]


def _twice(names: list[str]) -> str | None:
    """A name that is there twice; columns without one are nobody's."""
    return next((name for place, name in enumerate(names) if name and name in names[:place]), None)


def values_of(texts: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table as :attr:`Table.values`.

    >>> texts = pd.DataFrame({"gpu": ["h100", ""], "m": ["8", "many"], "k": ["inf", "1e300"]})
    >>> values_of(texts).to_dict("list")
    {'gpu': ['h100', ''], 'm': [8.0, nan], 'k': [nan, nan]}
    """
    return pd.DataFrame({name: _values(str(name), texts[name]) for name in texts.columns})


def _values(name: str, cells: pd.Series) -> pd.Series:
    """A column as numbers if most of its cells are some, else as texts."""
    trimmed = cells.astype("string").str.strip()
    filled = trimmed.notna() & (trimmed != "")
    if not _TEXTS.search(name.lower()):
        numbers = (
            pd.to_numeric(trimmed.where(filled), errors="coerce")
            .astype("Float64")
            .to_numpy(float, na_value=np.nan)
        )
        if 2 * np.count_nonzero(~np.isnan(numbers)) >= np.count_nonzero(filled):
            numbers = np.where(np.abs(numbers) < _ABSURD, numbers, np.nan)
            whole = bool(np.all(np.isfinite(numbers) & (numbers == np.round(numbers))))
            return pd.Series(numbers.astype(np.int64) if whole else numbers, index=cells.index)
    return pd.Series(trimmed.where(filled, "").to_numpy(object), index=cells.index, dtype=object)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as the ending of ``path`` says.

    Raises:
        UserError: if it says something else than :data:`ENDINGS`.
    """
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        write_csv(table, path, float_format="%.6g")
