"""Accuracy in a table of one number per cell: as Markdown for the documentation, and as a history
of what each revision reached.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.base.partial import whole_file
from simulator.base.reading import read_text
from simulator.lab.results.scores import (
    TARGETS,
    Scoreboard,
    Target,
    is_answered,
    order_of,
    percent_of,
    score,
)
from simulator.lab.validation.hardware import accelerator_name
from simulator.lab.validation.suites import SERVING


class Case(NamedTuple):
    """A column: what a prediction has not seen."""

    name: str
    """:data:`simulator.lab.results.scores.Scoreboard.unseen` says it; empty for nothing."""
    head: str
    expect: str
    """Whose figures these are."""


CASES = (
    Case("", "in sample", "your model, GPU and engine release are in the fits"),
    Case("model", "left out by whole model", "your model is new"),
    Case("gpu", "left out by whole GPU", "your GPU is new"),
    Case("release", "left out by whole engine release", "your engine release is new"),
)
"""Columns of the table of measured suites, from the least to expect of a stranger's case to the
most: where several are new, the worst of them."""
FIGURES = {
    "rows": "rows",
    "answered": "rows answered",
    "median": "error: median",
    "p90": "error: 90th percentile",
    "covered": "inside the 80 % band",
    "ordered": "pairs in the right order",
}
"""Figures of a set of rows: counts, shares and errors."""
_HELD = {"answered": "answered", "median": "median", "p90": "90th"} | {
    "covered": "in 80 % band",
    "ordered": "in order",
}
_PUBLISHED, _MEASURED = "published", "measured"


def rate(rows: pd.DataFrame) -> dict[str, float]:
    """:data:`FIGURES` of a set of rows, and how many are ``refused``; not a number where there is
    nothing to tell.

    Args:
        rows: :data:`SCORE_COLUMNS`, and ``rival`` where rows are compared.
    """
    if rows.empty:
        return dict.fromkeys((*FIGURES, "refused"), np.nan) | {"rows": 0.0, "refused": 0.0}
    found = score(rows.assign(all=""), ["all"]).iloc[0]
    order: dict[str, Any] = order_of("", rows)
    return {
        "rows": float(found["rows"]),
        "refused": float(round(found["unsupported"] * found["rows"])),
        "answered": 1.0 - float(found["unsupported"]),
        **{name: float(found[name]) for name in ("median", "p90", "covered")},
        "ordered": order["right"] / order["pairs"] if order["pairs"] else np.nan,
    }


def accuracy_table(board: Scoreboard) -> pd.DataFrame:
    """A row for each target that some rows are held to and each of :data:`CASES`, for the rows of
    each GPU that are in no fit, and for each group of published figures: ``part``, ``what``,
    ``case``, ``without``, ``command``, ``refused`` and :data:`FIGURES`.
    """
    columns = ["part", "what", "case", "without", "command", "refused", *FIGURES]
    return pd.DataFrame(list(_rows_of(board)), columns=columns)


def _rows_of(board: Scoreboard) -> Iterator[dict[str, object]]:
    known = board.is_in_sample(board.rows)
    stated = {row["what"]: row for row in board.left_out.to_dict("records")}
    unseen = board.unseen
    for target in TARGETS:
        of_target = target.select_rows(board.rows)
        about = {"what": target.what, "without": "", "command": _command(target.suites)}
        if target.suites == (_PUBLISHED,):
            if of_target.any():
                yield {"part": _PUBLISHED, **about, "case": "", **rate(board.rows[of_target])}
            continue
        if not of_target.any():
            continue
        own, about = board.rows[of_target], {"part": _MEASURED, **about}
        gpus = own["group"].astype(str).str.split().str[0].fillna("")
        is_fitted = known[own.index] & gpus.isin(_gpus_with_fits(board, target, gpus))
        yield {**about, "case": "", **rate(own[is_fitted])}
        held = unseen[target.select_rows(unseen)] if len(unseen) else unseen
        for case in CASES[1:]:
            rows = held[held["case"] == case.name] if len(held) else held
            found = rate(rows)
            if case.name == "model" and rows.empty and target.what in stated:
                found |= {"answered": 1.0} | {
                    name: float(stated[target.what][name])
                    for name in ("rows", "median", "p90", "covered")
                }
            yield {**about, "case": case.name, **found}
        for gpu, rows in held[held["case"] == "gpu"].groupby("without") if len(held) else ():
            yield {**about, "case": "gpu", "without": f"{gpu}, left out", **rate(rows)}
        for gpu, rows in own[~is_fitted].groupby(gpus[~is_fitted]):
            yield {**about, "case": "gpu", "without": str(gpu), **rate(rows)}
    figures = board.rows[board.rows["suite"] == _PUBLISHED]
    for (group, quantity), own in figures.groupby(["group", "quantity"], sort=True):
        what = str(group) if str(quantity) in str(group) else f"{group}: {quantity}"
        about = {"part": _PUBLISHED, "what": what, "case": "", "without": ""}
        yield {**about, "command": _command((_PUBLISHED,)), **rate(own)}


def _gpus_with_fits(board: Scoreboard, target: Target, gpus: pd.Series) -> set[str]:
    """GPUs among ``gpus`` that some fit of the target's suites was made on."""
    if board.fits.empty:
        return set(gpus)
    is_engine = board.fits["table"] == "engine"
    fits = board.fits[is_engine if target.suites == (SERVING,) else ~is_engine]
    names = {name for own in fits["gpus"] for name in own}
    return {gpu for gpu in set(gpus) if accelerator_name(gpu) in names}


def _command(suites: tuple[str, ...]) -> str:
    if suites == (_PUBLISHED,):
        return "`moesim validate published`"
    kinds = [name if name == SERVING else f"kernels {name}" for name in suites]
    return " and ".join(f"`moesim validate {kind} TABLE`" for kind in kinds)


def markdown_of(table: pd.DataFrame, part: str, refused: pd.DataFrame | None = None) -> str:
    """One part of the table in Markdown; a dash where a number does not exist.

    Args:
        refused: :func:`count_refusals`.
    """
    own = table[table["part"] == part]
    if part == _PUBLISHED:
        heads = {"rows": "figures", **_HELD}
        del heads["answered"], heads["ordered"]
        lines = [
            [row["what"], *_cells(row, heads), row["command"]] for row in own.to_dict("records")
        ]
        return _draw(["what", *heads.values(), "how to see it"], lines)
    whole, gpus = own[own["without"] == ""], own[own["without"] != ""]
    lines = []
    for what, cases in whole.groupby("what", sort=False):
        by_case = cases.set_index("case").to_dict("index")
        for name, title in FIGURES.items():
            if all(np.isnan(case[name]) for case in by_case.values()):
                continue
            shown = [_cell(name, by_case[case.name][name]) for case in CASES]
            count = cases["refused"].max() if name == "answered" else np.nan
            lines.append([str(what), title, *shown, _cell("refused", count)])
    columns = [case.head for case in CASES]
    parts = [
        _draw(["your case", "expect the column"], [[case.expect, case.head] for case in CASES]),
        _draw(["what", "figure", *columns, "refused"], lines),
    ]
    if len(gpus):
        named = {"rows": "rows", "refused": "refused", **_HELD}
        lines = [
            [row["what"], row["without"], *_cells(row, named)] for row in gpus.to_dict("records")
        ]
        parts.append(_draw(["what", "rows in no fit, by GPU", *named.values()], lines))
    if refused is not None and len(refused):
        counts = [
            [str(row["why"]), str(row["case"]), _cell("rows", row["rows"])]
            for row in refused.to_dict("records")
        ]
        parts.append(_draw(["refused", "column", "rows"], counts))
    return "\n".join(parts)


def count_refusals(board: Scoreboard) -> pd.DataFrame:
    """Measured rows that have no answer: ``why``, ``case`` and ``rows``, in sample and left out."""
    heads = {case.name: case.head for case in CASES}
    both = pd.concat([board.rows.assign(case=""), board.unseen], ignore_index=True)
    both = both[(both["suite"] != _PUBLISHED) & ~is_answered(both["status"].astype(str))]
    why = both["status"].str.removeprefix("unsupported:").str.split("[:;]", regex=True).str[0]
    why = why.str.strip().str.replace(r"\b\d[\d.,]*\b", "N", regex=True)
    return (
        both.assign(why=why, case=both["case"].map(heads))
        .groupby(["why", "case"], sort=True)
        .size()
        .rename("rows")
        .reset_index()
    )


def _draw(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|" + "---|" * len(heads)
    return "\n".join([_line(heads), rule, *map(_line, lines)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Mapping[Any, Any], names: Iterable[str]) -> list[str]:
    return [_cell(name, row[name]) for name in names]


def _cell(name: str, value: float) -> str:
    is_count = name in ("rows", "refused") and np.isfinite(value)
    return f"{value:,.0f}" if is_count else percent_of(value)


def update_document(text: str, board: Scoreboard) -> str:
    """A document whose marked parts hold the accuracy of ``board``; a part that it has no rows for
    stays as it is, and one without marks is put at the end.
    """
    table = accuracy_table(board)
    for part in table["part"].unique():
        begin, end = f"<!-- accuracy: {part} -->", f"<!-- end: {part} -->"
        block = f"{begin}\n\n{markdown_of(table, part, count_refusals(board))}\n{end}"
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
    figures: dict[str, dict[str, float]] = {}
    for row in accuracy_table(board).to_dict("records"):
        if not row["without"]:
            prefix = {"published": "unseen", "model": "unseen"}.get(row["case"] or row["part"])
            prefix = prefix or row["case"]
            figures.setdefault(row["what"], {}).update(
                (f"{prefix}_{name}".strip("_"), row[name])
                for name in FIGURES
                if not np.isnan(row[name])
            )
    made = {"date": board.run["started"], "revision": board.run["revision"]}
    line = json.dumps({**made, "version": board.run["versions"]["moesim"], "figures": figures})
    past = read_text(path) if path.exists() else ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(f"{past}{line}\n", encoding="utf-8")
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
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            run = json.loads(line)
            made = {"date": run["date"], "revision": run["revision"]}
            rows += [{**made, "what": what, **found} for what, found in run["figures"].items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is no entry of a history") from error
    return pd.DataFrame(rows)
