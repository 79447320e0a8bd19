"""Columns of a Parquet file, read within bounds on what its metadata claims: a few bytes of it can
mean billions of equal values.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from simulator.base.errors import UserError
from simulator.base.reading import refuse_damage
from simulator.base.unpacking import check_claim

MAGIC = b"PAR1"
"""Magic number: the first bytes of a Parquet file."""
_TEXTS = ("string", "large_string")
_VALUE_BYTES = 8
"""Bytes of a decoded number; texts are dictionary-encoded, each different one once."""


def column_names(data: bytes, where: str) -> tuple[str, ...]:
    """Read the names of the columns from a file's contents.

    Raises:
        UserError: if it is damaged.
    """
    with refuse_damage(where, "a Parquet file"):
        return tuple(str(name) for name in _open(data, ()).schema_arrow.names)


def plain_names(data: bytes, where: str) -> tuple[str, ...]:
    """Read the names of the columns that hold no tables.

    Raises:
        UserError: if the file is damaged.
    """
    with refuse_damage(where, "a Parquet file"):
        schema = _open(data, ()).schema_arrow
        return tuple(str(one.name) for one in schema if not _is_nested(one.type))


def read_columns(data: bytes, names: Sequence[str], where: str) -> Any:
    """Read columns as a ``pyarrow.Table``, with texts as dictionaries.

    Args:
        data: the file's content.
        names: columns that the file has (:func:`column_names`).
        where: the file that errors name.

    Raises:
        UserError: if it is damaged, claims more values than a file of its size may, or a column
            holds tables.
    """
    with refuse_damage(where, "a Parquet file"):
        file = _open(data, ())
        types = {name: file.schema_arrow.field(name).type for name in names}
        nested = [name for name in names if _is_nested(types[name])]
        if nested:
            raise UserError(f"{where}: column {nested[0]} holds tables; write numbers or texts")
        check_claim(where, _claimed_bytes(file.metadata, names), len(data))
        texts = [name for name in names if str(types[name]) in _TEXTS]
        return _open(data, texts).read(columns=list(names))


def _open(data: bytes, texts: Sequence[str]) -> Any:
    """Open a Parquet file, untyped: pyarrow's exports are not declared as a strict
    type check asks.
    """
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    return parquet.ParquetFile(pa.BufferReader(data), read_dictionary=list(texts))


def _is_nested(kind: Any) -> bool:
    types = importlib.import_module("pyarrow.types")
    inner = kind.value_type if types.is_list(kind) else kind
    return bool(types.is_nested(inner))


def _claimed_bytes(metadata: Any, names: Sequence[str]) -> int:
    claimed = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema.split(".")[0] in names:
                decoded = _VALUE_BYTES * column.num_values
                claimed += max(decoded, column.total_uncompressed_size)
    return claimed
