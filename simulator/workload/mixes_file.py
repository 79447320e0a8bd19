"""Mixes of kinds of text in a file: CSV or Parquet with a column ``at_s`` (seconds) and a column of
shares for each kind of text.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from simulator.base import parquet
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.base.reading import read_bytes, refuse_damage
from simulator.config.workload import DomainsSpec

_Table = tuple[list[str], Sequence[Sequence[object]]]
"""Names and rows of a table."""
_TIME = "at_s"
_MOST_BYTES = 1 << 24
"""Largest file: a mix a second for a month, of a few kinds of text, is half of it."""


def read_mixes(spec: DomainsSpec, folder: Path) -> DomainsSpec:
    """Replace the name of a file of mixes by what is in it; a spec without one stays as it is.

    Args:
        folder: the scenario's folder, which the name is relative to.

    Raises:
        UserError: if the file is missing or damaged, or its mixes make no sense.
    """
    if not isinstance(spec.mixes, str):
        return spec
    path = folder / os.path.expanduser(spec.mixes)
    data = read_bytes(path, _MOST_BYTES)
    with refuse_damage(path, "a table of mixes"):
        names, rows = (_read_parquet if data.startswith(parquet.MAGIC) else _read_csv)(path, data)
    if _TIME not in names or len(set(names)) < max(len(names), 2):
        raise UserError(
            f"{path}: a table of mixes has a column {_TIME} and one of shares for each kind of "
            f"text, each once; found are {', '.join(names) or 'none'}"
        )
    mixes = [_read_row(path, number, names, row) for number, row in enumerate(rows, 1)]
    return validate(DomainsSpec, {**spec.model_dump(), "mixes": mixes}, str(path))


def _read_csv(path: Path, data: bytes) -> _Table:
    """Read the names and the rows of texts."""
    lines = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    return [name.strip() for name in lines[0]] if lines else [], lines[1:]


def _read_parquet(path: Path, data: bytes) -> _Table:
    """Read the names and the rows of numbers."""
    names = list(parquet.column_names(data, str(path)))
    columns = parquet.read_columns(data, names, str(path)).to_pydict()
    return names, [list(row) for row in zip(*(columns[name] for name in names), strict=True)]


def _read_row(
    path: Path, number: int, names: Sequence[str], row: Sequence[object]
) -> dict[str, object]:
    """Read a mix; an empty share is 0."""
    if len(row) != len(names):
        raise UserError(f"{path}, row {number}: has {len(row)} values, for {len(names)} columns")
    found = {}
    for name, value in zip(names, row, strict=True):
        try:
            found[name] = float(str(value).strip() or 0) if value is not None else 0.0
        except ValueError:
            raise UserError(
                f"{path}, row {number}: {name} must be a number, not {value!r}"
            ) from None
    return {_TIME: found.pop(_TIME), "shares": found}
