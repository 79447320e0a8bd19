"""Bytes of a trace file, however it is packed; and its beginning."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from simulator.base import parquet
from simulator.base.errors import UserError
from simulator.base.unpacking import unpack

HEAD_BYTES = 65_536
"""Bytes of a file's head."""
_BOM = b"\xef\xbb\xbf"


def read_unpacked(path: Path) -> bytes:
    """Read a file's contents, decompressed where it is packed, without a byte order mark; empty for
    a folder.

    Raises:
        UserError: if the file is missing, unreadable, damaged or empty, or unpacks to too much.
    """
    if path.is_dir():
        return b""
    data = unpack(path).removeprefix(_BOM)
    if not data or data.isspace():
        raise UserError(f"{path}: the file is empty; a request trace has at least one request")
    return data


def head_of(data: bytes) -> bytes:
    """Beginning of a file by which its format is recognised: the first 64 KiB; all of a Parquet
    file, whose columns are named at its end.
    """
    return data if data.startswith(parquet.MAGIC) else data[:HEAD_BYTES]


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
    """Read up to 200 JSON objects from the first lines, as far as lines are whole and hold one
    object each.
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
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def json_keys(head: bytes) -> set[str]:
    """Find the keys of the first JSON line; where that line is too long to be whole, every key seen
    in the head.
    """
    rows = json_rows(head)
    if rows:
        return set(rows[0])
    if not head.lstrip().startswith((b"{", b"[")):
        return set()
    return {match.decode("ascii") for match in re.findall(rb'"([A-Za-z_][\w -]*)"\s*:', head)}
