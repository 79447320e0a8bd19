"""Tables that are read a column at a time: data frames, or rows in a file where memory would not
hold them.

A table that comes in parts is a data frame as long as there is one part; from the second on, parts
are row groups of a Parquet file without a name, so that nothing of it is left when a process ends.
"""

from __future__ import annotations

import importlib
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import union_categoricals

from simulator.base.errors import UserError
from simulator.base.reading import refuse_damage


class Columns(Protocol):
    """Table whose columns are read one at a time."""

    def __getitem__(self, name: str, /) -> pd.Series:
        """Read a column, its rows in the table's order."""
        ...

    def __len__(self) -> int:
        """Count rows."""
        ...


class Picked:
    """Selected rows of a table."""

    def __init__(self, columns: Columns, is_own: NDArray[np.bool_]) -> None:
        """Select the rows of ``columns`` for which ``is_own`` is true."""
        self._columns, self._is_own = columns, is_own

    def __getitem__(self, name: str, /) -> pd.Series:
        return self._columns[name][self._is_own]

    def __len__(self) -> int:
        return int(self._is_own.sum())


class StoredColumns:
    """Rows in a Parquet file; each access to a column reads it."""

    def __init__(self, file: IO[bytes], groups: list[int] | None = None) -> None:
        """Open some row groups, by default all, of a file that is closed with this object."""
        weakref.finalize(self, file.close)
        self._bytes = file
        self._file = _parquet().ParquetFile(file)
        self._groups = list(range(self._file.num_row_groups)) if groups is None else groups

    def __getitem__(self, name: str, /) -> pd.Series:
        parts = map(partial(self._read_part, name), self._groups)
        first = next(parts)
        if first.dtype.kind not in "iufb":
            return pd.Series(
                union_categoricals([part.astype("category") for part in chain([first], parts)])
            )
        # Part by part into its place: all parts beside the whole would take twice the room.
        values, begin = np.empty(len(self), dtype=first.to_numpy().dtype), 0
        for part in chain([first], parts):
            values[begin : begin + len(part)] = part
            begin += len(part)
        return pd.Series(values, copy=False)

    def __len__(self) -> int:
        metadata = self._file.metadata
        return sum(metadata.row_group(group).num_rows for group in self._groups)

    def _read_part(self, name: str, group: int) -> pd.Series:
        with refuse_damage(str(self._bytes.name), "a Parquet file"):
            part: pd.Series = self._file.read_row_group(group, columns=[name]).to_pandas()[name]
        return part

    def frames(self) -> Iterator[pd.DataFrame]:
        """Read all columns, a row group at a time."""
        for group in self._groups:
            yield self._file.read_row_group(group).to_pandas()

    def __getstate__(self) -> tuple[bytes, list[int]]:
        """Contents of the whole file, for another process."""
        self._bytes.seek(0)
        return self._bytes.read(), self._groups

    def __setstate__(self, state: tuple[bytes, list[int]]) -> None:
        file = _open_unnamed()
        with _explain_full_disk():
            file.write(state[0])
            file.flush()
        StoredColumns.__init__(self, file, state[1])


def list_frames(columns: Columns) -> Iterator[pd.DataFrame]:
    """Yield a table in parts that memory holds."""
    if isinstance(columns, StoredColumns):
        yield from columns.frames()
    else:
        assert isinstance(columns, pd.DataFrame)
        yield columns


def read_whole(columns: Columns) -> pd.DataFrame:
    """Read a table as one data frame."""
    return pd.concat(list(list_frames(columns)), ignore_index=True)


class Spool:
    """Table that is written part by part; a single part is made only when it is read."""

    def __init__(self) -> None:
        """Start without rows."""
        self._only: Callable[[], pd.DataFrame] | None = None
        self._file: IO[bytes] | None = None
        self._writer: ParquetParts | None = None

    def add(self, make: Callable[[], pd.DataFrame]) -> None:
        """Append rows to those that have come, if there are any.

        Raises:
            UserError: if there is no room on disk.
        """
        if self._writer is None and self._only is None:
            self._only = make
            return
        part, first = make(), self._only and self._only()
        if first is not None and not len(first):
            self._only = lambda: part
        elif len(part):
            with _explain_full_disk():
                self._write(part, first)

    def _write(self, part: pd.DataFrame, first: pd.DataFrame | None) -> None:
        if first is not None:
            self._only, self._file = None, _open_unnamed()
            self._writer = ParquetParts(self._file)
            self._unused = weakref.finalize(self, _throw_away, self._writer, self._file)
            self._writer.add(first)
        assert self._writer is not None
        self._writer.add(part)

    def close(self) -> Columns:
        """Finish the table and return it.

        Raises:
            UserError: if there is no room on disk.
            ValueError: if no part has come.
        """
        if self._only is not None:
            return self._only()
        if self._file is None or self._writer is None:
            raise ValueError("a table of no part has no columns")
        with _explain_full_disk():
            self._writer.close()
            self._file.flush()
        self._unused.detach()
        return StoredColumns(self._file)


class ParquetParts:
    """Parquet file that is written a row group at a time."""

    def __init__(self, file: IO[bytes] | Path) -> None:
        """Start without rows; ``file`` is open for writing, or a path."""
        self._file = file
        self._writer: Any = None
        self._arrow = importlib.import_module("pyarrow")

    def add(self, part: pd.DataFrame, **first: str) -> None:
        """Write rows as a row group; an empty part after others writes none.

        Args:
            first: further columns, each of one value, before the others.
        """
        for place, (name, value) in enumerate(first.items()):
            part = part.copy(deep=False)
            part.insert(place, name, value)
        table = self._arrow.Table.from_pandas(part, preserve_index=False)
        if self._writer is None:
            self._writer = _parquet().ParquetWriter(self._file, table.schema)
        elif not len(part):
            return
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def _throw_away(parts: ParquetParts, file: IO[bytes]) -> None:
    """Close the files of a spool that nobody reads, in the order that they need."""
    with suppress(OSError):
        parts.close()
    file.close()


@contextmanager
def _explain_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{tempfile.gettempdir()}: has no room for what a long run leaves "
            f"({error.strerror or error}); let TMPDIR name a folder that has"
        ) from error


def _open_unnamed() -> IO[bytes]:
    """Open a temporary file that is gone when it is closed, or when this process ends."""
    return tempfile.TemporaryFile()


def _parquet() -> Any:
    """Import pyarrow's Parquet module, untyped and only once a table is long."""
    return importlib.import_module("pyarrow.parquet")
