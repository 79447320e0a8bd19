"""The suites of the scoreboard: which there are, which one reads a table, and every row of a table
answered and scored.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.base.plugins import available, build
from simulator.base.progress import Progress, count_part, show_nothing
from simulator.lab.results.scores import is_answered, order_of, worst
from simulator.lab.validation import Answered, Answers, Measure, require, score_rows, with_answers
from simulator.lab.validation.hardware import accelerator_name, near_accelerators
from simulator.lab.validation.kernels import KernelFamily
from simulator.lab.validation.known_rows import is_known
from simulator.lab.validation.sizes import numbers
from simulator.lab.validation.splits import split_orders
from simulator.lab.validation.tables import ENDINGS, Table, format_of, read_table

_FAMILIES = "validation.kernels"
SERVING, PUBLISHED = "serving", "published"
"""Suites besides the families of kernels."""
_COMPARED = "tpot"
"""Quantity by which deployments are ordered."""
_ROWS_TO_TELL_BY = 50
_ROWS_TOLD, _COLUMNS_TOLD = 10, 10


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


def describe_columns() -> list[str]:
    """A line for each kind of table of each family: columns that it must have, and those with what
    was measured.
    """
    return [
        f"{name}: {', '.join(required)}; measured, for errors: {', '.join(measured)}"
        for name in families()
        for required, measured in family_of(name).list_layouts()
    ]


def answer_kernels(name: str, path: Path, tick: Progress = show_nothing) -> Answered:
    """Answer every row of a table of kernel or exchange timings.

    Raises:
        UserError: if the family is unknown, or the table is not one of it.
    """
    family = family_of(name)
    table = read_table(path)
    require(table.values, family.columns, str(path))
    measures = family.measures_of(table.values, str(path))
    count = count_part(tick, f"{name}: {path.name}", len(table.values))
    answers = family.answer(spell_formats(table.values))
    found = _join_answers(name, path, table, measures, answers, family.columns)
    count(len(table.values))
    if not measures:
        return found
    order = split_orders(name, table.values, family.columns, measures[0], answers)
    return replace(found, order=order)


def answer_serving(
    path: Path, tick: Progress = show_nothing, workers: int | None = None
) -> Answered:
    """Answer every row of a table of serving points, on so many processes; ``None`` = one a core.

    Raises:
        UserError: if the table is not one of serving points.
    """
    from simulator.lab.validation import serving

    table = read_table(path)
    require(table.values, serving.COLUMNS, str(path))
    count = count_part(tick, f"{SERVING}: {path.name}", len(table.values))
    answers = serving.answer(table.values, count, workers)
    rivals = list_rivals(table.values)
    found = _join_answers(SERVING, path, table, serving.MEASURES, answers, (), rivals)
    return replace(found, order=(order_of(SERVING, found.rows),))


def answer_published(file: Path | None, tick: Progress = show_nothing) -> Answered:
    """Answer published figures: the shipped ones, or those of a file.

    Raises:
        UserError: if the file is of no known kind of figures.
    """
    from simulator.lab.validation import published

    return published.run(file, tick)


def answer(
    suite: str, path: Path, tick: Progress = show_nothing, workers: int | None = None
) -> Answered:
    """Answer a table of any suite; serving points on so many processes, ``None`` = one a core.

    Raises:
        UserError: if the table is not one of the suite.
    """
    if suite == PUBLISHED:
        return answer_published(path, tick)
    return (
        answer_serving(path, tick, workers)
        if suite == SERVING
        else answer_kernels(suite, path, tick)
    )


def list_rivals(values: pd.DataFrame) -> list[str]:
    """For each row of serving points the deployments that it is compared with: of one model on one
    kind of GPU under the same load; empty where a row cannot be read.
    """
    from simulator.lab.validation import serving

    found = [""] * len(values)
    made, _ = serving.groups(values)
    for group in made:
        for place, point in zip(group.rows, group.points, strict=True):
            found[place] = f"{point.system} {point.repository} {point.asked}"
    return found


def _join_answers(
    suite: str,
    path: Path,
    table: Table,
    measures: tuple[Measure, ...],
    answers: Answers,
    columns: tuple[str, ...],
    rivals: list[str] | None = None,
) -> Answered:
    """Put answers beside what was measured.

    Args:
        columns: what tells a row to a reader first, where it has no ``id``.
        rivals: of each row, :func:`list_rivals`.
    """
    answers = _with_statuses(answers, table.texts)
    columns_there = [one.column for one in measures if one.column in table.values.columns]
    found = numbers(table.values, columns_there)
    rows = score_rows(suite, table.values.assign(**found), measures, answers)
    if rivals is not None:
        is_compared = rows["quantity"] == _COMPARED
        named = [rivals[int(place)] for place in rows["subject"]]
        rows["rival"] = np.where(is_compared, np.array(named, dtype=object), "")
    if not rows.empty:
        measured = {measure.column for measure in measures}
        first = dict.fromkeys(
            [*columns, *(name for name in table.texts.columns if name not in measured)]
        )
        rows = _name_rows(
            rows[rows["measured"] > 0].reset_index(drop=True),
            table.texts,
            tuple(first)[: max(len(columns), _COLUMNS_TOLD)],
        )
    lacking = [measure.column for measure in measures if measure.column not in found]
    unusable = {
        column: count
        for column, cells in found.items()
        if (count := int((~np.isfinite(cells) | (cells <= 0)).sum()))
    }
    return Answered(
        suite,
        str(path),
        with_answers(table.texts, measures, answers),
        rows,
        unusable=unusable,
        lacking=tuple(lacking),
        spare=_spare(
            lacking, [str(name) for name in table.texts.columns if name not in {*columns, *found}]
        ),
        repeated=int(table.texts.duplicated().sum()),
        in_sample=is_known(table.values),
    )


def _spare(lacking: Sequence[str], others: list[str]) -> tuple[str, ...]:
    """Columns whose names are near those that a table lacks, else its first few."""
    near = [
        name
        for column in lacking
        for name in difflib.get_close_matches(column, others, n=1, cutoff=0.6)
    ]
    return tuple(dict.fromkeys(near or others[:_COLUMNS_TOLD])) if lacking else ()


def _name_rows(rows: pd.DataFrame, texts: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """The rows under their ids; without ids, those that are furthest off with what is in them,
    since they will be looked at.
    """
    if "id" in texts.columns:
        return rows.assign(subject=texts["id"].astype(str).to_numpy()[rows["subject"].astype(int)])
    told = {
        subject: (
            f"{subject} "
            f"({', '.join(f'{name} {texts[name].iloc[int(subject)]}' for name in columns)})"
        )
        for subject in worst(rows, _ROWS_TOLD)["subject"].unique()
    }
    return rows.assign(subject=[told.get(subject, subject) for subject in rows["subject"]])


def _with_statuses(answers: Answers, texts: pd.DataFrame) -> Answers:
    """Call rows without a finite answer unsupported, with the reason in words, and leave no seconds
    in them.
    """
    finite = np.asarray(np.isfinite(answers.seconds).any(axis=1))
    said = is_answered(pd.Series(answers.status, dtype=object)).to_numpy(bool)
    status = [
        status if ok or not was_answered else "unsupported: no finite time comes of these values"
        for status, ok, was_answered in zip(answers.status, finite, said, strict=True)
    ]
    nothing = ~(finite & said)[:, None]
    seconds, low, high = (
        np.where(nothing, np.nan, part) for part in (answers.seconds, answers.low, answers.high)
    )
    return Answers(seconds, low, high, explain_statuses(status, texts), answers.group)


def check_folder(folder: Path) -> None:
    """Check that there is a folder to read tables from.

    Raises:
        UserError: if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}; "
            "name one with tables of measurements"
        )


def tables_in(folder: Path) -> tuple[dict[Path, str], dict[str, str]]:
    """The tables of a folder by the suite that reads them, and why others are not read, by name.

    Raises:
        UserError: if there is no such folder.
    """
    check_folder(folder)
    found: dict[Path, str] = {}
    skipped: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if not _may_be_table(path):
            continue
        try:
            suite = suite_of(read_table(path, _ROWS_TO_TELL_BY).values)
        except UserError as error:
            skipped[path.name] = str(error).removeprefix(f"{path}: ")
            continue
        if suite is None:
            skipped[path.name] = _why_none(read_table(path, 1).values)
        else:
            found[path] = suite
    return found, skipped


def _may_be_table(path: Path) -> bool:
    """Whether a file of a folder is looked into: notes and the like are not."""
    if not path.is_file():
        return False
    try:
        return path.name.endswith(ENDINGS) or format_of(path) != "CSV"
    except OSError:  # it may not be read
        return False


def suite_of(values: pd.DataFrame) -> str | None:
    """The suite that reads a table of these columns; of several the one that asks for most of
    them.
    """
    from simulator.lab.validation import published, serving

    if set(serving.COLUMNS) <= set(values.columns):
        return SERVING
    fitting = [
        (len(family_of(name).columns), name)
        for name in families()
        if _reads(family_of(name), values)
    ]
    if fitting:
        return max(fitting)[1]
    return PUBLISHED if published.topic_of(set(values.columns)) else None


def _why_none(values: pd.DataFrame) -> str:
    """Why no suite reads a table of these columns."""
    columns = set(map(str, values.columns))
    for name in families():
        for required, measured in family_of(name).list_layouts():
            if set(required) <= columns:
                return (
                    f"its columns are those of {name}, but it has none of the measured "
                    f"ones: {', '.join(measured)}"
                )
    return "its columns are those of no suite"


def _reads(family: KernelFamily, values: pd.DataFrame) -> bool:
    if not set(family.columns) <= set(values.columns):
        return False
    try:
        measures = family.measures_of(values)
    except UserError:
        return False
    return any(measure.column in values.columns for measure in measures)


# Cells of a table as people write them: spellings of number formats, and what is said of a cell
# that cannot be used.


_SPELLINGS = {"bf16": "bfloat16", "fp16": "float16"}
_ENDS_OF_FORMATS = ("_dtype", "gemm_type")
"""Ends of the names of columns that hold number formats."""
_NO_NUMBER = re.compile(r"unsupported: (\w+) is not a number")
_NO_GPU = re.compile(r"unsupported: no (?:calibrated accelerator|accelerator file for) '(.*)'")
_NO_FORMAT = "unsupported: no number format ''"
_WRITTEN_AS = {
    "num_tokens": ("num_token", "tokens_per_rank"),
    "topk": ("num_topk",),
    "num_ranks": ("ep_size", "node_num", "ep", "num_gpus"),
    "message_elements": ("message_size",),
}
"""Other names of columns in tables, by the name that statuses have."""
_GPU_COLUMNS = ("gpu", "system", "hardware")


def spell_formats(values: pd.DataFrame) -> pd.DataFrame:
    """A table whose number formats are spelled as those that measured write them.

    >>> table = pd.DataFrame({"gpu": ["H100"] * 3, "gemm_dtype": ["bf16", "FP8", "BFLOAT16"]})
    >>> spell_formats(table).to_dict("list")
    {'gpu': ['H100', 'H100', 'H100'], 'gemm_dtype': ['bfloat16', 'fp8', 'bfloat16']}
    """
    found = values.copy(deep=False)
    for name in found.columns:
        if str(name).endswith(_ENDS_OF_FORMATS):
            found[name] = found[name].astype(object).map(_spell)
    return found


def _spell(cell: object) -> object:
    return _SPELLINGS.get(cell.lower(), cell.lower()) if isinstance(cell, str) else cell


def explain_statuses(status: Sequence[str], texts: pd.DataFrame) -> list[str]:
    """Statuses that quote the cell they are about, and name GPUs that may have been meant.

    Args:
        texts: :attr:`simulator.lab.validation.tables.Table.texts`, a row a status.

    >>> no_number = "unsupported: m is not a number"
    >>> explain_statuses(["ok", no_number, no_number], pd.DataFrame({"m": ["8", "abc", ""]}))
    ['ok', 'unsupported: m is not a number: abc', 'unsupported: m is empty']
    """
    return [
        _explain(said, texts, row) if said.startswith("unsupported") else said
        for row, said in enumerate(status)
    ]


def _explain(said: str, texts: pd.DataFrame, row: int) -> str:
    if found := _NO_NUMBER.fullmatch(said):
        column = _write_cell(found[1], texts)
        return f"unsupported: {_of_number(column, _cell(texts, column, row))}" if column else said
    if found := _NO_GPU.fullmatch(said):
        column = next((name for name in _GPU_COLUMNS if name in texts.columns), None)
        if column and not found[1]:
            return f"unsupported: {column} is empty"
        return said if accelerator_name(found[1]) else f"{said}; {_of_gpu(found[1])}"
    if said.startswith(_NO_FORMAT):
        named = [str(name) for name in texts.columns if str(name).endswith(_ENDS_OF_FORMATS)]
        column = next((name for name in named if not _cell(texts, name, row)), None)
        return f"unsupported: {column} is empty" if column else said
    return said


def _write_cell(column: str, texts: pd.DataFrame) -> str | None:
    return next(
        (name for name in (column, *_WRITTEN_AS.get(column, ())) if name in texts.columns), None
    )


def _cell(texts: pd.DataFrame, column: str, row: int) -> str:
    cell = texts[column].iloc[row]
    return "" if pd.isna(cell) else str(cell).strip()


def _of_number(column: str, text: str) -> str:
    if not text:
        return f"{column} is empty"
    try:
        is_large = math.isfinite(float(text))
    except ValueError:
        is_large = False
    return (
        f"{column} is {text}, larger than anything that is counted"
        if is_large
        else f"{column} is not a number: {text}"
    )


def _of_gpu(gpu: str) -> str:
    near = near_accelerators(gpu)
    return (
        f"near it: {', '.join(near)}; 'moesim list accelerators' has all"
        if near
        else "'moesim list accelerators' has all that are"
    )
