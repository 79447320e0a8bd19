"""Reads what ``torch.save`` wrote, without torch: tensors become numpy arrays, and nothing in the
file can run code.

The format is a zip archive with one pickle, which refers to raw storages that lie beside it. Only
the handful of names that a dictionary of tensors needs are allowed in the pickle; this is what
``torch.load(weights_only=True)`` does.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError

_STORAGES = {
    "BoolStorage": "?",
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
}


class _RefusedError(Exception):
    """The pickle asks for something that a dictionary of tensors does not need."""


def load_torch_file(path: Path) -> Any:
    """The object saved in ``path``, its tensors as numpy arrays.

    Raises:
        UserError: if the file is not there, is not such a file, is damaged, or holds anything but
            plain data and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(f"{path}: not a file written by torch.save (no data.pkl inside)")
            with archive.open(pickles[0]) as stream:
                return _Unpickler(stream, archive, pickles[0].removesuffix("data.pkl")).load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        raise UserError(
            f"{path}: not a file written by torch.save of torch 1.6 or later (no zip archive)"
        ) from None
    except _RefusedError as error:
        raise UserError(f"{path}: refused: {error}") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise UserError(f"{path}: damaged: {error}") from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self._archive = archive
        self._folder = folder
        names = archive.namelist()
        is_big = f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big"
        self._byte_order: Literal[">", "<"] = ">" if is_big else "<"

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch", "Size"): tuple,
        }
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in allowed:
            raise _RefusedError(
                f"it holds a {module}.{name}; only plain data and whole-number or "
                "floating-point tensors are read"
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        marker, code, key, _, num_elements = pid
        if marker != "storage" or not isinstance(code, str) or not isinstance(key, str):
            raise _RefusedError("it refers to something that is not a tensor's storage")
        raw = self._archive.read(f"{self._folder}data/{key}")
        return np.frombuffer(
            raw, dtype=np.dtype(code).newbyteorder(self._byte_order), count=num_elements
        )


def _rebuild_tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_ignored: Any
) -> NDArray[Any]:
    """A view of a storage as torch describes it, copied so that it stands on its own."""
    if not isinstance(storage, np.ndarray):
        raise _RefusedError("a tensor has no storage")
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise _RefusedError("a tensor has an impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage):
        raise _RefusedError("a tensor reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    start = storage[offset:] if 0 not in size else storage[:0]
    view = np.lib.stride_tricks.as_strided(start, shape=size, strides=strides, writeable=False)
    return view.astype(storage.dtype.newbyteorder("="))
