"""A file of the user's, read or given as a table: overridden, validated, and with the place that
paths in it are relative to.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simulator.base.data import available_files, find_file
from simulator.base.errors import UserError, did_you_mean
from simulator.base.home import fetch
from simulator.base.reading import read_toml
from simulator.base.text import inline_toml

Overrides = Sequence[str] | Mapping[str, Any]
"""Keys that replace those of a file: ``path=value`` texts as of the command line, or values by
path. A path is dotted (``workload.num_requests``, ``deployments.0.parallel.tp``); ``*`` means every
entry of a list."""


class UserTable(NamedTuple):
    """A table that is not validated yet."""

    table: dict[str, Any]
    where: str
    """File, or what else errors call it."""
    folder: Path
    """Folder that paths in the table are relative to."""
    changed: str
    """Overrides as errors show them behind ``where``; empty without any."""


def read_user_table(
    source: str | Path | Mapping[str, Any],
    overrides: Overrides,
    seed: int | None,
    family: str,
    noun: str,
) -> UserTable:
    """Read a file, a shipped one by name, or a table, and override its keys.

    Args:
        seed: replaces the table's own; ``None`` keeps it.
        family: folder of the shipped files, such as ``workloads``.
        noun: kind of file in errors, such as ``scenario``.

    Raises:
        UserError: if the file is missing or no TOML, or an override names no place.
    """
    if isinstance(source, Mapping):
        table, where, folder = copy.deepcopy(dict(source)), noun, Path.cwd()
        table.setdefault("name", noun)
    else:
        if not isinstance(source, str | Path):
            raise UserError(
                f"a {noun} is a path, a shipped name or a table, not {type(source).__name__}"
            )
        path = _find(str(source), family, noun)
        table, where, folder = read_toml(path), str(path), path.resolve().parent
        table.setdefault("name", path.stem)
    texts = _override_all(table, overrides)
    if seed is not None:
        table["seed"] = seed
    changed = " with --set " + " --set ".join(texts) if texts else ""
    return UserTable(table, where, folder, changed)


def is_training(source: str | Path | Mapping[str, Any], family: str) -> bool:
    """Whether a file or a table has ``[training]``, as far as can be told without an error.

    Args:
        source: path of a TOML file, name of a shipped one, or the same keys as a table.
        family: folder of the shipped files that have it.
    """
    if isinstance(source, Mapping):
        return "training" in source
    name = str(source)
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        return name in available_files(family)
    try:
        return "training" in read_toml(path)
    except UserError:
        return False


def _find(name: str, family: str, noun: str) -> Path:
    path = fetch(Path(name))
    if path.suffix != ".toml" and not path.is_file():
        if name in available_files(family):
            path = find_file(family, name, name)
        elif not path.exists():
            raise UserError(
                f"{name}: no such file, and no shipped {noun} of that "
                f"name; {did_you_mean(name, available_files(family))}"
            )
    if path.suffix == ".json":
        raise UserError(
            f"{path}: a {noun} is a TOML file; a model's config.json is named by "
            f"a {noun}'s model key"
        )
    return path


def override_texts(overrides: Overrides) -> list[str]:
    """Overrides as ``path=value`` texts of the command line.

    Raises:
        UserError: if a value is or has ``None``, which TOML does not have.

    >>> override_texts({"workload.rate_scale": 2.0, "deployments.*.engine": "sglang"})
    ['workload.rate_scale=2.0', 'deployments.*.engine="sglang"']
    """
    if isinstance(overrides, str):
        return [overrides]
    if isinstance(overrides, Mapping):
        return [_override_text(path, value) for path, value in overrides.items()]
    return list(overrides)


def _override_text(path: str, value: Any) -> str:
    try:
        return f"{path}={inline_toml(value)}"
    except ValueError as error:
        raise UserError(f"--set {path}: {error}") from None


def _override_all(table: dict[str, Any], overrides: Overrides) -> list[str]:
    """Put all values in their places, and return them as texts."""
    texts = override_texts(overrides)
    for text in texts:
        path, equals, value = text.partition("=")
        keys = _split_path(path if equals else "", text)
        if not value.strip():
            raise UserError(f'--set {text}: has no value behind the =; an empty text is ""')
        _replace(table, keys, _read_value(value.strip(), text), text)
    return texts


def _split_path(path: str, override: str) -> list[str]:
    keys = path.strip().split(".")
    if not all(keys):
        raise UserError(f"--set {override}: must be path=value, such as workload.num_requests=1000")
    return [key.strip() for key in keys]


def _read_value(text: str, override: str) -> Any:
    """A TOML value; what is none is a text without quotes, unless it looks like a list, a table or
    a quoted text.
    """
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text[0] in "[{\"'":
            raise UserError(f"--set {override}: {text} is not a TOML value: {error}") from None
        return text
    return found["value"] if len(found) == 1 else text


def _replace(node: Any, keys: list[str], value: Any, override: str) -> None:
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if key != "*" and not (key.isdecimal() and int(key) < len(node)):
            numbers = "0" if len(node) < 2 else f"a number from 0 to {len(node) - 1}"
            raise UserError(f"--set {override}: '{key}' must be {numbers}, or * for every entry")
        for entry in range(len(node)) if key == "*" else [int(key)]:
            if rest:
                _replace(node[entry], rest, value, override)
            else:
                node[entry] = value
    elif not isinstance(node, dict):
        raise UserError(
            f"--set {override}: '{key}' lies inside a value that is not a table; shorten the path"
        )
    elif rest:
        _replace(node.setdefault(key, {}), rest, value, override)
    else:
        node[key] = value
