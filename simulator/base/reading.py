"""Reading of TOML and JSON files, and opening of any file a user names; every error
names the file.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from simulator.base.errors import UserError
from simulator.base.home import fetch
from simulator.base.text import shorten

MOST_BYTES = 4 << 30
"""Bytes of the largest file that is read, unpacked: three times a week of Azure's requests, which a
machine of 16 GB can hold together with the tables made of it."""
_MOST_TEXT_BYTES = 64 << 20
"""Bytes of the largest TOML or JSON configuration file; the largest known has 2 MB."""
_DEEPEST = 100
"""Deepest nesting of tables and lists; configuration files have six levels, and Python stops at
some 900."""
_LARGEST_WHOLE = 2**63
"""Bound of a TOML file's whole numbers, which have 64 bits with sign (TOML 1.0, "Integer")."""
_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_JSON_TYPES = {list: "a list", str: "a text", type(None): "null"}
_NO_FILES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading bytes. Pipes, sockets and devices, which could block for ever, are
    refused.

    Raises:
        UserError: if it is missing, a folder, a pipe or a device, or may not be read.
    """
    path = fetch(path)
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFDIR:
            raise UserError(f"{path}: is a folder; name a file")
        if kind in _NO_FILES:
            raise UserError(
                f"{path}: is {_NO_FILES[kind]}, not a file; write what it gives to a file"
            )
        return path.open("rb")
    except FileNotFoundError:
        target = " (the link points to nothing)" if path.is_symlink() else ""
        raise UserError(f"{path}: no such file{target}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # no name can hold a zero byte
        raise UserError(f"{str(path)!r}: is no name of a file: {error}") from None


def load_file(path: Path, most: int = MOST_BYTES) -> io.BytesIO:
    """Read a file's contents for a library that would open the path by itself; else as
    :func:`read_bytes`.
    """
    return io.BytesIO(read_bytes(path, most))


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a file's contents.

    Raises:
        UserError: as :func:`open_file`, or if it has more than ``most`` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise UserError(
                f"{path}: has {bytes_text(size)}, and at most {bytes_text(most)} are read; "
                "name a smaller file, or a part of it"
            )
        with refuse_damage(path, "a readable file"):
            return file.read()


@contextlib.contextmanager
def refuse_damage(where: Path | str, what: str) -> Iterator[None]:
    """Turn whatever a parser raises within this context into one line: a damaged or hostile file
    makes each library fail in its own, undocumented way.

    Args:
        where: the file that the line names.
        what: the kind of file it should be: ``"a numpy archive"``.

    Raises:
        UserError: for any exception but a :class:`UserError`, which passes.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(
            f"{where}: is too large for this machine's memory; make it smaller"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply to be {what}") from None
    except Exception as error:
        reason = shorten(" ".join(str(error).split()) or type(error).__name__, 200)
        raise UserError(f"{where}: damaged, or not {what}: {reason}") from error


def bytes_text(count: int) -> str:
    """Write a number of bytes for people.

    >>> bytes_text(550), bytes_text(64 << 20), bytes_text(3 << 29)
    ('550 bytes', '64 MiB', '1.5 GiB')
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} bytes"


def read_toml(path: Path) -> dict[str, Any]:
    """Read the table in a TOML file.

    Raises:
        UserError: if the file is missing, empty, or not text, or is not TOML (with the line), or
            holds a number or a nesting that no description has.
    """
    try:
        table = copy.deepcopy(_parse(read_text(path)))
    except tomllib.TOMLDecodeError as error:
        reason, place = shorten(str(error), 200), ""
        if found := _TOML_PLACE.search(str(error)):
            reason, place = str(error)[: found.start()], f", line {found[1]}, column {found[2]}"
        raise UserError(f"{path}{place}: not valid TOML: {shorten(reason, 200)}") from None
    except (_RefusedError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: {_why(error)}") from None
    if not table:
        raise UserError(f"{path}: is empty; there is no key in it")
    return table


@lru_cache(maxsize=64)
def _parse(text: str) -> dict[str, Any]:
    """Parse TOML, cached: sweeps read the same few files thousands of times."""
    table = tomllib.loads(text)
    _refuse_absurd(table, _LARGEST_WHOLE)
    return table


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UserError: if the file is missing, is not text, is not JSON (with the line), or holds no
            object.
    """
    found = parse_json(read_text(path), str(path))
    if not isinstance(found, dict):
        kind = _JSON_TYPES.get(type(found), "a single value")
        raise UserError(f"{path}: must hold a JSON object, found {kind}")
    return found


def parse_json(text: str | bytes, where: str) -> Any:
    """Read the value in a JSON text.

    Raises:
        UserError: with the line, if it is not JSON, is nested too deeply, or holds a number of
            thousands of digits.
    """
    try:
        found = json.loads(text)
        _refuse_absurd(found, None)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
        ) from None
    except (_RefusedError, RecursionError, ValueError) as error:
        raise UserError(f"{where}: {_why(error)}") from None
    return found


class _RefusedError(Exception):
    """Value that its format allows and no configuration file holds."""


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"is nested deeper than {_DEEPEST} levels"
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text; save it as UTF-8"
    if isinstance(error, ValueError):  # Python reads whole numbers of up to 4,300 digits
        return "holds a number of thousands of digits"
    return str(error)


def _refuse_absurd(value: object, largest: int | None) -> None:
    """Refuse values that would break their users; goes level by level instead of recursing."""
    level: Sequence[tuple[str, object]] = [("", value)]
    for _ in range(_DEEPEST):
        inner = []
        for name, child in (pair for parent in level for pair in _entries(*parent)):
            if isinstance(child, dict | list):
                inner.append((name, child))
            elif largest is not None and type(child) is int and not -largest <= child < largest:
                raise _RefusedError(
                    f"{shorten(name)} must be a whole number of at most 64 bits, "
                    f"got {shorten(str(child))}"
                )
        if not inner:
            return
        level = inner
    raise _RefusedError(f"is nested deeper than {_DEEPEST} levels")


def _entries(name: str, node: object) -> Iterator[tuple[str, object]]:
    """List the entries of a table or list; an entry of a list has the list's name."""
    if isinstance(node, dict):
        yield from ((str(key), child) for key, child in node.items())
    elif isinstance(node, list):
        yield from ((name, child) for child in node)


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        UserError: if the file is missing, a folder, unreadable or not UTF-8 text.
    """
    data = read_bytes(path, _MOST_TEXT_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: is not UTF-8 text; name another file, or save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path}: is not a text file")
    return text
