"""Read TOML and JSON files; every error names the file."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from simulator.base.errors import UserError

_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_JSON_TYPES = {list: "a list", str: "a text", type(None): "null"}


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        UserError: if the file is missing, empty, or not text, or is not TOML (with the line).
    """
    try:
        table = copy.deepcopy(_parsed(read_text(path)))
    except tomllib.TOMLDecodeError as error:
        reason, place = str(error), ""
        if found := _TOML_PLACE.search(reason):
            reason, place = reason[: found.start()], f", line {found[1]}, column {found[2]}"
        raise UserError(f"{path}{place}: not valid TOML: {reason}") from None
    if not table:
        raise UserError(f"{path}: is empty; there is no key in it")
    return table


@lru_cache(maxsize=64)
def _parsed(text: str) -> dict[str, Any]:
    """Parsed once: sweeps read the same few files thousands of times."""
    return tomllib.loads(text)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: if the file is missing, is not text, is not JSON (with the line), or holds no
            object.
    """
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
        ) from None
    if not isinstance(found, dict):
        kind = _JSON_TYPES.get(type(found), "a single value")
        raise UserError(f"{path}: must hold a JSON object, found {kind}")
    return found


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: if the file is missing, a folder, unreadable or not UTF-8 text.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: is not UTF-8 text; name another file, or save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path}: is not a text file")
    return text
