"""Tables of expert ids, CSV (also packed) or Parquet: a row for each expert that a token chose in a
layer.

| column | |
|---|---|
| ``token`` | number of the token, in the order of its sequence |
| ``layer`` | number of the MoE layer, from 0 |
| ``expert`` | number of the chosen expert, from 0; below 0 = padding |
| ``sequence`` | number of the token's sequence, its request's ``request_id``; absent = one |

Rows may come in any order. Every token has as many rows in every layer: the model's top-k.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base import parquet
from simulator.base.errors import UserError
from simulator.base.unpacking import unpack
from simulator.policies.routing._recording import Tokens

_COLUMNS = ("token", "layer", "expert")
_SEQUENCE = "sequence"


def is_id_table(path: Path) -> bool:
    """Whether a file's name is that of a table: ``.csv``, ``.csv.gz`` (or ``.xz``, ``.zst``,
    ``.zip``) or ``.parquet``.
    """
    return path.suffix in (".csv", ".parquet") or Path(path.stem).suffix == ".csv"


def read_id_table(path: Path) -> Tokens:
    """Read a table of ids.

    Raises:
        UserError: if the file cannot be read, lacks a column, holds anything but whole numbers, or
            some token has more or fewer experts in a layer than others.
    """
    columns = _read_columns(path)
    token, layer, expert = (columns[name] for name in _COLUMNS)
    if not len(token):
        raise UserError(f"{path}: holds no recorded token")
    sequence = columns.get(_SEQUENCE, np.zeros(len(token), np.int64))
    order = np.lexsort((layer, token, sequence))
    sequence, token, layer = sequence[order], token[order], layer[order]
    is_first = (np.diff(token, prepend=token[0] - 1) != 0) | (np.diff(sequence, prepend=0) != 0)
    is_first[0] = True
    layers, num_tokens = np.unique(layer), int(is_first.sum())
    top_k, rest = divmod(len(token), num_tokens * len(layers))
    token_of_row = np.cumsum(is_first) - 1
    row = np.arange(len(token))
    expected = layers[row // max(top_k, 1) % len(layers)]
    wrong = (layer != expected) | (token_of_row != row // max(top_k * len(layers), 1))
    if rest or wrong.any():
        at = int(np.argmax(wrong))
        raise UserError(
            f"{path}: token {token[at]} has more or fewer experts in layer {layer[at]} than other "
            "tokens and layers; every token needs as many rows in every layer"
        )
    ids_TLK = expert[order].reshape(num_tokens, len(layers), top_k)
    numbers, sequence_T = np.unique(sequence[is_first], return_inverse=True)
    return Tokens(
        ids_TLK.transpose(1, 0, 2),
        sequence_T.astype(np.int64),
        tuple(layers.tolist()),
        request_Q=tuple(map(str, numbers.tolist())) if _SEQUENCE in columns else (),
    )


def _read_columns(path: Path) -> dict[str, NDArray[np.int64]]:
    """Read the columns as whole numbers, by name."""
    data = unpack(path)
    is_parquet = data.startswith(parquet.MAGIC)
    names = parquet.column_names(data, str(path)) if is_parquet else _header(data)
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise UserError(
            f"{path}: missing column '{missing[0]}'; a table of ids has the columns "
            f"{', '.join(_COLUMNS)} and perhaps {_SEQUENCE}, a row for each expert that a token "
            f"chose in a layer, and this one has: {', '.join(names[:8]) or 'none'}"
        )
    wanted = [name for name in (*_COLUMNS, _SEQUENCE) if name in names]
    table = parquet.read_columns(data, wanted, str(path)) if is_parquet else _csv(data, wanted)
    return {name: _whole(table.column(name), f"{path}: column {name}") for name in wanted}


def _header(data: bytes) -> tuple[str, ...]:
    return tuple(data.split(b"\n", 1)[0].decode("utf-8").strip().split(","))


def _csv(data: bytes, wanted: list[str]) -> Any:
    """Read CSV columns, untyped as all that is pyarrow's."""
    pa, csv = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.csv")
    options = csv.ConvertOptions(
        include_columns=wanted, column_types={name: pa.int64() for name in wanted}
    )
    return csv.read_csv(pa.BufferReader(data), convert_options=options)


def _whole(column: Any, where: str) -> NDArray[np.int64]:
    values = column.to_numpy()
    if values.dtype.kind not in "iu" or column.null_count:
        raise UserError(f"{where} must be whole numbers in every row, got {column.type}")
    return np.asarray(values.astype(np.int64))
