"""The tables of the page of ``moesim execute``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from simulator.report.deployment_tables import Value
from simulator.report.execution_numbers import kind_of_step
from simulator.report.texts import minus
from simulator.results.executed import KINDS, SUMMARY_COLUMNS, Executed
from simulator.results.formats import UNDEFINED, number, parameters, seconds


class Column(NamedTuple):
    """A column of the summary."""

    title: str
    write: Callable[[float], str]
    definition: str = ""


def _percent(value: float) -> str:
    return minus(f"{100 * value:+.1f} %")


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _count(value: float) -> str:
    return number(value, keep_zeros=True)


def _time(value: float) -> str:
    return seconds(value, keep_zeros=True)


def _difference(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


_COLUMNS = {
    "tokens_per_s": Column("Tokens per second", _count),
    "predicted_tokens_per_s": Column("predicted speed", _count),
    "step_s": Column("Time of a step", _time),
    "predicted_step_s": Column("predicted time", _time),
    "error": Column("Error of the prediction", _percent),
    "idle_error": Column("with all cores", _percent),
    "others_share": Column("Cores that others took", _share),
    "calibrated_others_share": Column("when calibrated", _share),
    "largest_difference": Column("Difference from one process", _difference),
    "num_parameters": Column("Parameters", parameters),
    "num_active_parameters": Column("active", parameters),
}
COLUMNS = {
    key: column._replace(definition=SUMMARY_COLUMNS[key]) for key, column in _COLUMNS.items()
}
"""Columns of the summary in the order of the table."""


def list_numbers(executed: Executed) -> list[dict[str, Any]]:
    """Rows of the summary: ``deployment``, ``kind``, and a :class:`Value` a column in
    ``numbers``.
    """
    speeds = executed.summary.groupby("kind")["tokens_per_s"]
    fastest = speeds.max().where(speeds.size() > 1)
    return [
        {
            "deployment": str(row["deployment"]),
            "kind": str(row["kind"]),
            "numbers": {
                key: _number(row, key, is_best=row[key] == best and key == "tokens_per_s")
                for key in COLUMNS
            },
        }
        for row in executed.summary.to_dict("records")
        for best in [fastest[row["kind"]]]
    ]


def _number(row: dict[Any, Any], key: str, is_best: bool) -> Value:
    raw = math.nan if row[key] is None else float(row[key])
    return Value(raw, COLUMNS[key].write(raw) if math.isfinite(raw) else UNDEFINED, is_best)


def list_faults(executed: Executed) -> list[dict[Any, Any]]:
    """Faults in their order."""
    return [
        {
            **fault,
            "deployment": str(fault["deployment"]),
            "kind": KINDS[kind_of_step(executed, int(fault["step"]))],
        }
        for fault in executed.faults.astype({"step": int, "recovery_s": float}).to_dict("records")
    ]
