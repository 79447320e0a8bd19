"""Writes a calibration as the TOML that the simulator reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from simulator.spec.host import HostCalibration

_DIGITS = 4
"""Significant digits: timings do not repeat to more."""


def calibration_toml(calibration: HostCalibration) -> str:
    """The file's text."""
    head = "# Written by moesim calibrate cpu. Times are seconds.\n"
    return head + "\n".join(_table(calibration.model_dump(exclude_none=True), "")) + "\n"


def _table(table: dict[str, Any], path: str) -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, dict) and not _is_tables(value):
            yield f"{key} = {_value(value)}"
    for key, value in table.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield f"\n[{inner}]"
            yield from _table(value, inner)
        elif _is_tables(value):
            for entry in value:
                yield f"\n[[{inner}]]"
                yield from _table(entry, inner)


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], list | tuple):
            return "[\n" + "".join(f"  {_value(row)},\n" for row in value) + "]"
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return f"{value:.{_DIGITS - 1}e}"
    return json.dumps(value, ensure_ascii=False)
