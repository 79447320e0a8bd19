"""The accuracy scoreboard: measurements beside what the cost models and the engine predict for
them.

A suite reads a table of measurements and answers every row: with seconds, a band, and a status
(``ok``; ``extrapolated: why`` outside the measured domain, with a wider band; ``unsupported:
why``). It prices rows with the same cost models that the engine and the planner use, so the
scoreboard's errors are theirs.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulator.base.arrays import Floats
from simulator.base.errors import UserError, did_you_mean
from simulator.lab.results.scores import SCORE_COLUMNS

OK = "ok"
_COVERAGE_COLUMNS = ("low", "high")


class Measure(NamedTuple):
    """One measured quantity of a table."""

    name: str
    """``predicted_<name>_s`` is its column in the result."""
    column: str
    unit_s: float
    """Seconds of one unit of the column: 1e-3 for milliseconds."""


@dataclass(frozen=True)
class Answers:
    """Answers of a suite to ``n`` rows with ``M`` measures each. Seconds are not a number where
    unsupported.
    """

    seconds: Floats
    """``[n, M]``."""
    low: Floats
    """``[n, M]``: lower end of the 80 % band, likewise ``high``."""
    high: Floats
    status: list[str]
    """``[n]``."""
    group: list[str]
    """``[n]``: what errors are reported by, such as a GPU, an engine and a dtype."""

    @classmethod
    def make_unsupported(cls, num_rows: int, num_measures: int) -> Answers:
        """Rows without answers, which a suite fills in."""
        nothing = np.full((num_rows, num_measures), np.nan)
        return cls(
            nothing, nothing.copy(), nothing.copy(), ["unsupported"] * num_rows, [""] * num_rows
        )


@dataclass(frozen=True)
class Answered:
    """A table with its answers."""

    suite: str
    source: str
    """The file, or what the rows are."""
    table: pd.DataFrame
    """The input's columns as they stood in the file, and the answers."""
    rows: pd.DataFrame
    """:data:`simulator.lab.results.scores.SCORE_COLUMNS` of every measurement in the table."""
    order: tuple[dict[str, object], ...] = ()
    """Whether deployments stand in the right order: :func:`order_of`."""
    unusable: dict[str, int] = field(default_factory=dict)
    """Rows without a usable number in a measured column, by its name: they are answered, but
    not compared."""
    lacking: tuple[str, ...] = ()
    """Measured columns that the table does not have."""
    spare: tuple[str, ...] = ()
    """Columns that may have been meant by those."""
    repeated: int = 0
    """Rows that are the same as an earlier one in every cell."""
    in_sample: bool = False
    """Whether its rows are among those that the calibrations were fitted on."""


def require(table: pd.DataFrame, columns: tuple[str, ...], where: str) -> None:
    """Check that a table has the columns that a suite needs.

    Raises:
        UserError: naming all that are missing, and the nearest that are there.
    """
    there = list(map(str, table.columns))
    missing = [column for column in columns if column not in there]
    if len(missing) == 1:
        raise UserError(
            f"{where}: missing column '{missing[0]}'; {did_you_mean(missing[0], there)}"
        )
    if missing:
        spare = [column for column in there if column not in columns]
        near = {
            column: difflib.get_close_matches(column, spare, n=1, cutoff=0.7) for column in missing
        }
        meant = [f"'{found[0]}' for '{column}'" for column, found in near.items() if found]
        hint = f"did you mean {', '.join(meant)}?" if meant else f"it has {', '.join(there)}"
        raise UserError(f"{where}: missing columns {', '.join(map(repr, missing))}; {hint}")


def with_answers(
    table: pd.DataFrame, measures: tuple[Measure, ...], answers: Answers
) -> pd.DataFrame:
    """The table with ``predicted_<name>_s``, ``low_<name>_s``, ``high_<name>_s`` of every measure,
    and ``status``.
    """
    new = {}
    for m, measure in enumerate(measures):
        new[f"predicted_{measure.name}_s"] = answers.seconds[:, m]
        for column in _COVERAGE_COLUMNS:
            new[f"{column}_{measure.name}_s"] = getattr(answers, column)[:, m]
    new["status"] = np.array(answers.status, dtype=object)
    return table.assign(**new)


def score_rows(
    suite: str, table: pd.DataFrame, measures: tuple[Measure, ...], answers: Answers
) -> pd.DataFrame:
    """The long table (:data:`SCORE_COLUMNS`) of what was measured; rows
    that a measure leaves empty are left out.
    """
    found = []
    for m, measure in enumerate(measures):
        if measure.column not in table.columns:
            continue
        rows = pd.DataFrame(
            {
                "suite": suite,
                "group": answers.group,
                "subject": table.index.astype(str),
                "quantity": measure.name,
                "unit": "s",
                "measured": table[measure.column].to_numpy(dtype=float) * measure.unit_s,
                "predicted": answers.seconds[:, m],
                "low": answers.low[:, m],
                "high": answers.high[:, m],
                "status": np.array(answers.status, dtype=object),
            }
        )
        found.append(rows[np.isfinite(rows["measured"])])
    nothing = pd.DataFrame(columns=list(SCORE_COLUMNS))
    return pd.concat(found, ignore_index=True) if found else nothing
