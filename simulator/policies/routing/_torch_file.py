"""Files written by ``torch.save``, read without torch: tensors become numpy arrays, and nothing in
the file can run code.

The format is a zip archive with one pickle, which refers to raw storages that lie beside it. Only
the handful of names that a dictionary of tensors needs are allowed in the pickle, as in
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simulator.base.errors import UserError
from simulator.base.reading import bytes_text
from simulator.base.unpacking import most_unpacked, open_archive, read_member

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


_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
"""Opcodes that store a value under a number, up to which the unpickler allocates space."""


def load_torch_file(path: Path) -> object:
    """Read the object saved in ``path``, its tensors as numpy arrays.

    Raises:
        UserError: if the file is not there, is not such a file, is damaged, holds anything but
            plain data and tensors, or tensors larger than a file of its size may hold.
    """
    with open_archive(path, "a file written by torch.save of torch 1.6 or later") as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path}: not a file written by torch.save (no data.pkl inside)")
        program = read_member(archive, pickles[0])
        _check_program(program, path)
        folder = pickles[0].removesuffix("data.pkl")
        return _Unpickler(io.BytesIO(program), archive, folder, path).load()


def _check_program(program: bytes, path: Path) -> None:
    """Refuse a pickle that claims texts longer than it is, or space for values that it
    cannot have.
    """
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in _MEMO and not 0 <= int(argument or 0) <= len(program):
            raise UserError(f"{path}: damaged: it numbers more values than it holds")


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, stream: io.BytesIO, archive: zipfile.ZipFile, folder: str, path: Path
    ) -> None:
        super().__init__(stream)
        self._archive = archive
        self._folder = folder
        self._path = path
        names = archive.namelist()
        is_big = f"{folder}byteorder" in names and (
            read_member(archive, f"{folder}byteorder") == b"big"
        )
        self._byte_order: Literal[">", "<"] = ">" if is_big else "<"
        self._storages: dict[str, bytes] = {}
        self._bytes_left = most_unpacked(path.stat().st_size)

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch", "Size"): tuple,
        }
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in allowed:
            raise self._make_refusal(
                f"it holds a {module}.{name}; only plain data and whole-number or "
                "floating-point tensors are read"
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        marker, code, key, _, num_elements = pid
        if marker != "storage" or not isinstance(code, str) or not isinstance(key, str):
            raise self._make_refusal("it refers to something that is not a tensor's storage")
        if key not in self._storages:
            self._storages[key] = read_member(self._archive, f"{self._folder}data/{key}")
        dtype = np.dtype(code).newbyteorder(self._byte_order)
        return np.frombuffer(self._storages[key], dtype=dtype, count=num_elements)

    def _rebuild_tensor(
        self,
        storage: Any,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *_ignored: Any,
    ) -> np.ndarray:
        """Read a view of a storage as torch describes it, copied so that it is independent: with a
        stride of 0 one value is a tensor of any size.
        """
        if not isinstance(storage, np.ndarray):
            raise self._make_refusal("a tensor has no storage")
        if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise self._make_refusal("a tensor has an impossible shape")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(storage):
            raise self._make_refusal("a tensor reaches beyond its storage")
        claimed = math.prod(size) * storage.itemsize
        if claimed > self._bytes_left:
            most, held = most_unpacked(self._path.stat().st_size), self._path.stat().st_size
            raise UserError(
                f"{self._path}: a tensor of {list(size)} makes {bytes_text(claimed)}, and the "
                f"tensors of a file of {bytes_text(held)} may make {bytes_text(most)} together; "
                "save tensors that are not expanded (tensor.contiguous()), or fewer"
            )
        self._bytes_left -= claimed
        strides = tuple(step * storage.itemsize for step in stride)
        start = storage[offset:] if 0 not in size else storage[:0]
        view = np.lib.stride_tricks.as_strided(start, shape=size, strides=strides, writeable=False)
        return view.astype(storage.dtype.newbyteorder("="))

    def _make_refusal(self, reason: str) -> UserError:
        return UserError(f"{self._path}: refused: {reason}")
