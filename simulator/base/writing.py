"""TOML tables that read well and differ from an earlier version only where a number moved."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

import numpy as np

from simulator.base.text import toml_key

DIGITS = 4
"""Significant digits of a number: measurements do not repeat to more."""


def toml_text(table: Mapping[str, object], head: str, digits: int = DIGITS) -> str:
    """Write a TOML file: a comment, then the table with each table in it under its own heading.
    ``None`` is left out.

    Args:
        digits: that numbers are rounded to; 17 leave them as they are.

    >>> print(toml_text({"gemm": {"any": {"floor_s": 2.5801e-06, "m": (1, 8)}}}, "Made by a test."))
    # Made by a test.
    <BLANKLINE>
    [gemm.any]
    floor_s = 2.58e-06
    m = [1, 8]
    <BLANKLINE>
    """
    lines = [f"# {line}" for line in head.splitlines()]
    return "\n".join([*lines, *_table(table, (), digits)]) + "\n"


def _table(table: Mapping[str, object], path: tuple[str, ...], digits: int) -> Iterator[str]:
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping) and not _is_tables(value):
            yield f"{toml_key(key)} = {_value(value, digits)}"
    for key, value in table.items():
        heading = ".".join(map(toml_key, (*path, key)))
        if isinstance(value, Mapping):
            if not value or not all(isinstance(entry, Mapping) for entry in value.values()):
                yield f"\n[{heading}]"
            yield from _table(value, (*path, key), digits)
        elif _is_tables(value):
            for entry in value:
                yield f"\n[[{heading}]]"
                yield from _table(entry, (*path, key), digits)


def _is_tables(value: object) -> TypeGuard[Sequence[Mapping[str, object]]]:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def _value(value: object, digits: int) -> str:
    if isinstance(value, np.generic | np.ndarray):
        return _value(value.tolist(), digits)
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], list | tuple):
            return "[\n" + "".join(f"  {_value(row, digits)},\n" for row in value) + "]"
        return f"[{', '.join(_value(entry, digits) for entry in value)}]"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number to write")
        return repr(float(f"{value:.{digits - 1}e}"))
    return json.dumps(value, ensure_ascii=False)
