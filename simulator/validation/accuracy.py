"""Accuracy in a table of one number per cell: as Markdown for the documentation, and as a history
of what each revision reached.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.base.text import first_line
from simulator.results.judgement import percent_of
from simulator.results.scores import Scoreboard, score
from simulator.results.targets import TARGETS

_NUMBERS = ("rows", "median", "p90", "unseen_rows", "unseen_median", "unseen_p90", "covered")
COLUMNS = ("part", "what", *_NUMBERS, "command")
"""Columns of the table: errors on rows that the calibrations were fitted on, and on ``unseen``
ones: those of published figures, on whose throughput nothing is fitted, and of models, shapes and
GPUs left out."""
_PUBLISHED, _MEASURED = "published", "measured"
_HEADS = {
    "rows": "rows",
    "median": "in sample: median",
    "p90": "in sample: 90th",
    "unseen_rows": "left out: rows",
    "unseen_median": "left out: median",
    "unseen_p90": "left out: 90th",
    "covered": "in 80 % band",
}
_SHOWN = {
    _PUBLISHED: {"rows": "figures", "unseen_median": "median", "unseen_p90": "90th"}
    | {"covered": "in 80 % band"},
    _MEASURED: _HEADS,
}
"""Headings of the columns of each part of the document."""
_NOTHING = "\N{EN DASH}"


def accuracy_table(board: Scoreboard) -> pd.DataFrame:
    """A row for each target that some rows are held to, and for each group of published figures:
    :data:`COLUMNS`.
    """
    return pd.DataFrame(list(_rows_of(board)), columns=list(COLUMNS))


def _rows_of(board: Scoreboard) -> Iterator[dict[str, Any]]:
    known = board.is_in_sample(board.rows)
    stated = {row["what"]: row for row in board.left_out.to_dict("records")}
    for target in TARGETS:
        covered = target.select_rows(board.rows)
        if covered.any():
            part = _PUBLISHED if target.suites == (_PUBLISHED,) else _MEASURED
            numbers = _numbers(board.rows[covered], known[covered], stated.get(target.what))
            yield {"part": part, "what": target.what, **numbers, "command": _command(target.suites)}
    figures = board.rows[board.rows["suite"] == _PUBLISHED]
    for (group, quantity), own in figures.groupby(["group", "quantity"], sort=True):
        what = str(group) if str(quantity) in str(group) else f"{group}: {quantity}"
        numbers = _numbers(own, known[own.index], None)
        yield {"part": _PUBLISHED, "what": what, **numbers, "command": _command((_PUBLISHED,))}


def _numbers(rows: pd.DataFrame, known: pd.Series, stated: dict[Any, Any] | None) -> dict[str, Any]:
    seen, unseen, both = (
        score(own.assign(all=""), ["all"]).iloc[0].to_dict() if len(own) else {}
        for own in (rows[known], rows[~known], rows)
    )
    other = stated if stated is not None else unseen
    values = [*(seen.get(name) for name in ("median", "p90"))]
    values += [other.get(name) for name in ("rows", "median", "p90")]
    numbers = [len(rows), *values, both["covered"]]
    return dict(zip(_NUMBERS, (_number(value) for value in numbers), strict=True))


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _command(suites: tuple[str, ...]) -> str:
    if suites == (_PUBLISHED,):
        return "`moesim validate published`"
    kinds = [name if name == "serving" else f"kernels {name}" for name in suites]
    return " and ".join(f"`moesim validate {kind} TABLE`" for kind in kinds)


def markdown_of(table: pd.DataFrame, part: str) -> str:
    """One part of the table in Markdown; a dash where a number does not exist."""
    heads = {"what": "what", **_SHOWN[part], "command": "how to see it"}
    lines = ["| " + " | ".join(heads.values()) + " |", "|---" * len(heads) + "|"]
    lines += [
        "| " + " | ".join(_cell(name, row[name]) for name in heads) + " |"
        for row in table[table["part"] == part].to_dict("records")
    ]
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Any) -> str:
    if name in ("what", "command"):
        return str(value)
    if np.isnan(value):
        return _NOTHING
    return f"{value:,.0f}" if name.endswith("rows") else percent_of(value)


def update_document(text: str, board: Scoreboard) -> str:
    """A document whose marked parts hold the accuracy of ``board``; a part that it has no rows for
    stays as it is, and one without marks is put at the end.
    """
    table = accuracy_table(board)
    for part in table["part"].unique():
        begin, end = f"<!-- accuracy: {part} -->", f"<!-- end: {part} -->"
        block = f"{begin}\n\n{markdown_of(table, part)}\n{end}"
        marked = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.DOTALL)
        if marked:
            text = text[: marked.start()] + block + text[marked.end() :]
        else:
            text = f"{text.rstrip()}\n\n{block}\n".lstrip()
    return text


def append_history(path: Path, board: Scoreboard) -> None:
    """Append a line to a history: ``date``, ``revision``, ``version`` and the ``figures`` of every
    row of :func:`accuracy_table`.

    Raises:
        UserError: if the file cannot be written.
    """
    figures = {
        row["what"]: {name: row[name] for name in _NUMBERS if not np.isnan(row[name])}
        for row in accuracy_table(board).to_dict("records")
    }
    made = {"date": board.run["started"], "revision": board.run["revision"]}
    line = json.dumps({**made, "version": board.run["versions"]["moesim"], "figures": figures})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def read_history(path: Path) -> pd.DataFrame:
    """Rows of a history, oldest first: ``date``, ``revision``, ``what`` and the numbers of
    :data:`COLUMNS`; empty where there is no such file.

    Raises:
        UserError: if the file cannot be read, or a line is none of :func:`append_history`.
    """
    if not path.exists():
        return pd.DataFrame()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no history that can be read: {first_line(error)}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
            made = {"date": run["date"], "revision": run["revision"]}
            rows += [{**made, "what": what, **found} for what, found in run["figures"].items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is no entry of a history") from error
    return pd.DataFrame(rows)
