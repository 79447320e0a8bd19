"""Meanings of the columns of a run's tables, with their units."""

from __future__ import annotations

from simulator.base.errors import check_known
from simulator.results import token_time
from simulator.results.metrics import CLASS_COLUMNS, METRICS
from simulator.results.tables import (
    EXPERT_COLUMNS,
    MOVE_COLUMNS,
    RANK_COLUMNS,
    REQUEST_COLUMNS,
    SPAN_COLUMNS,
    STEP_COLUMNS,
    TIER_COLUMNS,
    TRAFFIC_COLUMNS,
)

_TABLES = {
    "summary": {
        "deployment": "name of the deployment",
        **{
            name: f"{metric.definition} [{metric.unit}]" if metric.unit else metric.definition
            for name, metric in METRICS.items()
        },
    },
    "classes": CLASS_COLUMNS,
    "kv_tiers": TIER_COLUMNS,
    "requests": REQUEST_COLUMNS,
    "steps": STEP_COLUMNS,
    "token_time": token_time.COLUMNS,
    "ranks": RANK_COLUMNS,
    "experts": EXPERT_COLUMNS,
    "traffic": TRAFFIC_COLUMNS,
    "spans": SPAN_COLUMNS,
    "moves": MOVE_COLUMNS,
}


def describe_columns(table: str) -> dict[str, str]:
    """Meaning and unit of each column of a table of :meth:`Results.frame`.

    Times are seconds of virtual time since the first arrival.

    Raises:
        UserError: if there is no such table.

    >>> describe_columns("requests")["first_token_s"]
    'first output token [s]'
    >>> describe_columns("summary")["tpot_p50_s"]
    'time per output token, median over judged requests [s]'
    """
    check_known(table, _TABLES, "unknown table")
    return {name: _add_unit(name, text) for name, text in _TABLES[table].items()}


def _add_unit(name: str, text: str) -> str:
    """The text with the unit that the end of the column's name stands for."""
    return f"{text} [s]" if name.endswith("_s") and not text.endswith("]") else text
