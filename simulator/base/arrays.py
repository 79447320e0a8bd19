"""Types of arrays, and files of numpy (``.npz`` and ``.npy``), read without trusting what their
headers claim: an array is as large as the bytes that are there.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.reading import bytes_text, read_bytes, refuse_damage
from simulator.base.unpacking import open_archive, read_member

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
"""Arrays of the three types that almost all have; names end in their dimensions."""

_WHAT = "numpy arrays"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
"""Readers of headers by version of the format; version 3 differs in names of fields, which no
recording has."""


def load_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read arrays of a ``.npz``, those called by one of ``names``; the one of a ``.npy`` as
    ``ids``.

    Raises:
        UserError: if the file is missing or damaged, or a header claims more than there is.
    """
    if path.suffix == ".npy":
        return {"ids": parse_array(read_bytes(path), str(path))}
    with open_archive(path, _WHAT) as archive:
        held = [name.removesuffix(".npy") for name in archive.namelist()]
        if not set(held) & set(names):
            shown = ", ".join(sorted(held)[:8]) or "nothing"
            raise UserError(f"{path}: missing array 'ids' (or 'counts'); it holds: {shown}")
        return {
            name: parse_array(read_member(archive, f"{name}.npy"), f"{path}, array '{name}'")
            for name in held
            if name in names
        }


def parse_array(content: bytes, where: str) -> np.ndarray:
    """Read the array of a ``.npy`` file from its content.

    Raises:
        UserError: if it is damaged, holds Python objects, or its header claims more than there is.
    """
    with refuse_damage(where, _WHAT):
        stream = io.BytesIO(content)
        version = npy.read_magic(stream)
        if version not in _HEADERS:
            raise UserError(f"{where}: version {version} of numpy's format is not read")
        shape, is_fortran, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise UserError(f"{where}: holds Python objects, which are not read; save numbers")
        claimed, held = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
        if claimed > held:
            raise UserError(
                f"{where}: its header claims {bytes_text(claimed)} ({dtype} {list(shape)}), but "
                f"{bytes_text(held)} follow; it is damaged, so write it again"
            )
        values = np.frombuffer(content, dtype, math.prod(shape), stream.tell())
        return values.reshape(shape, order="F" if is_fortran else "C")
