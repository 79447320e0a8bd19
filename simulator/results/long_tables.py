"""Long tables of a results folder (requests and steps): one Parquet file for all deployments, whose
row groups are of one deployment each, so that a run of many requests is written and read in parts.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.base.columns import Columns, ParquetParts, StoredColumns, list_frames
from simulator.base.errors import UserError
from simulator.base.reading import load_file, open_file


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
