"""The suites of the scoreboard: which there are, which one reads a table, and every row of a table answered and scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.errors import UserError
from simulator.plugins import available, build
from simulator.scores import is_answered
from simulator.validation import Answers, Measure, require, score_rows, with_answers
from simulator.validation.kernels import KernelFamily, measures_of
from simulator.validation.tables import ENDINGS, Table, read_table

_FAMILIES = "validation.kernels"
_ROWS_TO_TELL_BY = 50
Tick = Callable[[str, int, int | None], None]
"""Told what is being done, how many rows of it are done, and how many there are."""


@dataclass(frozen=True)
class Answered:
    """A table with its answers."""

    suite: str
    source: str
    """The file, or what the rows are."""
    table: pd.DataFrame
    """The input's columns as they stood in the file, and the answers."""
    rows: pd.DataFrame
    """:data:`simulator.scores.SCORE_COLUMNS` of every measurement in the table."""
    order: tuple[dict[str, object], ...] = ()
    """Whether deployments stand in the right order: :func:`simulator.scores.order_of`."""


def families() -> tuple[str, ...]:
    """Names of the families of kernels."""
    return available(_FAMILIES)


def family_of(name: str) -> KernelFamily:
    """The family of kernels called ``name``.

    Raises:
        UserError: if there is none.
    """
    family: KernelFamily = build(_FAMILIES, {"kind": name}, "validate kernels")
    return family


def answer_kernels(name: str, path: Path) -> Answered:
    """Answer every row of a table of kernel or exchange timings.

    Raises:
        UserError: if the family is unknown, or the table is not one of it.
    """
    family = family_of(name)
    table = read_table(path)
    require(table.values, family.columns, str(path))
    return answered(name, str(path), table, measures_of(family, table.values), family.answer(table.values))


def answered(suite: str, source: str, table: Table, measures: tuple[Measure, ...], answers: Answers) -> Answered:
    """Put answers beside what was measured."""
    answers = _with_statuses(answers)
    rows = score_rows(suite, table.values.assign(**_numbers(table.values, measures)), measures, answers)
    if not rows.empty:
        rows = rows[rows["measured"] > 0].reset_index(drop=True)
    return Answered(suite, source, with_answers(table.texts, measures, answers), rows)


def _numbers(values: pd.DataFrame, measures: tuple[Measure, ...]) -> dict[str, pd.Series]:
    """The measured columns as numbers, whatever stands in them."""
    columns = [measure.column for measure in measures if measure.column in values.columns]
    return {column: pd.to_numeric(values[column], errors="coerce").astype(float) for column in columns}


def _with_statuses(answers: Answers) -> Answers:
    """The same with rows that have no finite answer called unsupported, and no seconds in rows that are."""
    finite = np.asarray(np.isfinite(answers.seconds).any(axis=1))
    said = is_answered(pd.Series(answers.status, dtype=object)).to_numpy(bool)
    status = [
        status if ok or not was_answered else "unsupported: no finite time comes of these values"
        for status, ok, was_answered in zip(answers.status, finite, said, strict=True)
    ]
    nothing = ~(finite & said)[:, None]
    seconds, low, high = (np.where(nothing, np.nan, part) for part in (answers.seconds, answers.low, answers.high))
    return Answers(seconds, low, high, status, answers.group)


def tables_in(folder: Path) -> tuple[dict[Path, str], dict[str, str]]:
    """The tables of a folder by the suite that reads them, and why others are not read, by name.

    Raises:
        UserError: if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}; name one with tables of measurements"
        )
    found: dict[Path, str] = {}
    skipped: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() or not path.name.endswith(ENDINGS):
            continue
        try:
            suite = suite_of(read_table(path, _ROWS_TO_TELL_BY).values)
        except UserError as error:
            skipped[path.name] = str(error).removeprefix(f"{path}: ")
            continue
        if suite is None:
            skipped[path.name] = "its columns are those of no suite"
        else:
            found[path] = suite
    return found, skipped


def suite_of(values: pd.DataFrame) -> str | None:
    """The suite that reads a table of these columns; of several the one that asks for most of them."""
    fitting = [(len(family_of(name).columns), name) for name in families() if _reads(family_of(name), values)]
    return max(fitting)[1] if fitting else None


def _reads(family: KernelFamily, values: pd.DataFrame) -> bool:
    if not set(family.columns) <= set(values.columns):
        return False
    try:
        measures = measures_of(family, values)
    except UserError:
        return False
    return any(measure.column in values.columns for measure in measures)
