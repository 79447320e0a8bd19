"""Bytes of a trace file, however it is packed; and what its beginning looks like."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import re
import zlib
from pathlib import Path
from typing import Any

from simulator.base.errors import UserError

HEAD_BYTES = 65_536
_BOM = b"\xef\xbb\xbf"
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"


def unpacked(path: Path) -> bytes:
    """The file's content, decompressed where it is gzip or xz (told by its first bytes), without a
    byte order mark.

    Raises:
        UserError: if the file is missing, unreadable, damaged or empty.
    """
    return _read(path, -1)


def head_of(path: Path) -> bytes:
    """The first 64 KiB of :func:`unpacked`, read without unpacking the rest; empty for a folder.

    Raises:
        UserError: if the file is missing, unreadable, damaged or empty.
    """
    return b"" if path.is_dir() else _read(path, HEAD_BYTES)


def _read(path: Path, num_bytes: int) -> bytes:
    try:
        with path.open("rb") as raw:
            magic = raw.read(len(_XZ))
            raw.seek(0)
            if magic.startswith(_GZIP):
                data = gzip.GzipFile(fileobj=raw).read(num_bytes)
            elif magic == _XZ:
                with lzma.LZMAFile(raw) as packed:
                    data = packed.read(num_bytes)
            else:
                data = raw.read(num_bytes)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    data = data.removeprefix(_BOM)
    if not data.strip():
        raise UserError(f"{path}: the file is empty; a request trace has at least one request")
    return data


def csv_header(head: bytes) -> tuple[str, ...]:
    r"""Column names in the first line that is not blank; none where it is not text.

    >>> csv_header(b"TIMESTAMP, ContextTokens\r\n2023,1\r\n")
    ('TIMESTAMP', 'ContextTokens')
    """
    try:
        first = head.lstrip().split(b"\n", 1)[0].decode("utf-8")
        if "\x00" in first or first.startswith(("{", "[")):
            return ()
        return tuple(name.strip() for name in next(csv.reader([first.rstrip("\r")]), []))
    except (UnicodeDecodeError, csv.Error):
        return ()


def json_rows(head: bytes) -> list[dict[str, Any]]:
    """Up to 200 JSON objects from the first lines, as far as lines are whole and hold one object
    each.
    """
    if not head.lstrip().startswith(b"{"):
        return []
    lines = head.split(b"\n")
    if len(head) >= HEAD_BYTES:
        lines.pop()  # cut off
    rows: list[dict[str, Any]] = []
    for line in lines[:200]:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def json_keys(head: bytes) -> set[str]:
    """Keys of the first JSON line; where that line is too long to be whole, every key seen in the
    head.
    """
    rows = json_rows(head)
    if rows:
        return set(rows[0])
    if not head.lstrip().startswith((b"{", b"[")):
        return set()
    return {match.decode("ascii") for match in re.findall(rb'"([A-Za-z_][\w -]*)"\s*:', head)}
