"""``moesim validate``: how far predictions are from measurements."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from simulator.base.errors import UserError
from simulator.base.partial import whole_file
from simulator.cli import console
from simulator.cli.console import Screen

app = typer.Typer(
    invoke_without_command=True,
    help=(
        "Show how far predictions are from measurements: the suites that ship, or your own tables."
    ),
)
_MEASUREMENTS = "MOESIM_MEASUREMENTS"


def register(commands: typer.Typer) -> None:
    """Add the command to those of ``moesim``."""
    commands.add_typer(app, name="validate")


Rows = Annotated[
    Path | None,
    console.option(
        "CSV or Parquet file to write: the table's columns, predictions, bands and status.",
        "FILE",
        flag="--out",
    ),
]
Page = Annotated[
    Path | None,
    console.option("HTML file to write: the scoreboard page.", "FILE", flag="--report"),
]
TableFile = Annotated[
    Path,
    console.argument("Measurements: CSV (gzipped or not) or Parquet, whatever its name.", "TABLE"),
]


def _place(option: str, suite: str) -> str:
    """Say where an option belongs that stands before the name of a suite."""
    if option in ("--accuracy", "--history"):
        return f"is of 'moesim validate' as a whole; leave out '{suite}'"
    return f"must stand behind '{suite}'"


@app.callback()
def validate(
    context: typer.Context,
    measurements: Annotated[
        Path | None,
        console.option(
            "Folder with tables of measurements, which are read by their columns.",
            "DIR",
            envvar=_MEASUREMENTS,
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        console.option("Folder to write; by default reports/out/validate.", "DIR", flag="--out"),
    ] = None,
    accuracy: Annotated[
        Path | None,
        console.option(
            "Markdown document to write: the accuracy in tables of one number per cell. "
            "In a document that is there, only those tables are replaced.",
            "FILE.md",
        ),
    ] = None,
    history: Annotated[
        Path | None,
        console.option(
            "Append date, revision and accuracy to this file, and draw all of it on the page.",
            "FILE.jsonl",
        ),
    ] = None,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Show how far predictions are from measurements: everything that ships, and the tables of a
    folder.
    """
    if context.invoked_subcommand is not None:
        given = {"--out": out_folder, "--json": as_json, "--accuracy": accuracy}
        given = {name: bool(value) for name, value in {**given, "--history": history}.items()}
        if misplaced := [name for name, is_given in given.items() if is_given]:
            raise UserError(f"{misplaced[0]}: {_place(misplaced[0], context.invoked_subcommand)}")
        return
    from simulator.lab.commands.validate import validate as validate_all

    folder = out_folder or Path("reports/out/validate")
    with console.progress(unit="rows", waiting="looking for tables of measurements") as tick:
        board = validate_all(
            measurements, folder=folder, accuracy=accuracy, history=history, progress=tick
        )
    if as_json:
        console.emit({"folder": str(folder), **as_numbers(board)})
    else:
        print_board(board)
    for name, why in board.run["skipped"].items():
        console.err.say(f"skipped: {name}: {why}", "yellow")
    console.err.say(f"report: {folder / 'report.html'}")


class _WithColumns(TyperCommand):
    """Help that ends with the columns of every family, which are looked up when somebody asks."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from simulator.lab.validation.suites import describe_columns

        # Typer keeps lines apart that an empty one is between.
        self.epilog = "\n\n".join(["Columns of a table:", *describe_columns()])
        super().format_help(ctx, formatter)


@app.command(cls=_WithColumns)
def kernels(
    family: Annotated[
        str,
        console.argument(
            "Such as gemm, attention or moe; moesim list kernels names them.", "FAMILY"
        ),
    ],
    table: TableFile,
    out_file: Rows = None,
    report: Page = None,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Answer a table of kernel or exchange timings."""
    from simulator.lab.validation.suites import answer_kernels, family_of

    family_of(family)
    _answer_one(lambda tick: answer_kernels(family, table, tick), table, out_file, report, as_json)


@app.command()
def serving(
    table: TableFile,
    out_file: Rows = None,
    report: Page = None,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Answer a table of serving points: TTFT and TPOT at a fixed number of requests in flight.

    Columns length_range (shortest over longest), concurrency and speculative (true, false or draft
    tokens) come before what ids suggest.
    """
    from simulator.lab.validation.suites import answer_serving

    _answer_one(lambda tick: answer_serving(table, tick), table, out_file, report, as_json)


@app.command("published")
def validate_published(
    file: Annotated[
        Path | None,
        console.argument("Published figures; by default those that ship.", "[FILE]"),
    ] = None,
    out_file: Rows = None,
    report: Page = None,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Answer published end-to-end figures."""
    from simulator.lab.validation.suites import answer_published

    _answer_one(lambda tick: answer_published(file, tick), file, out_file, report, as_json)


def _answer_one(
    answer: Callable[[Any], Any],
    table: Path | None,
    out_file: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Answer one table, and write and print what was found; files are written when all went
    well.
    """
    from simulator.lab.validation.board import describe_run, scoreboard
    from simulator.lab.validation.tables import ENDINGS, write_table

    if out_file is not None and not out_file.name.endswith(ENDINGS):
        raise UserError(
            f"--out {out_file}: must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, "
            "which says the format to write"
        )
    if out_file is not None and table is not None and out_file.resolve() == table.resolve():
        raise UserError(f"--out {out_file}: is the table itself; name another file")
    with ExitStack() as files:
        rows_file = out_file and files.enter_context(whole_file(out_file))
        page_file = report and files.enter_context(whole_file(report))
        waiting = f"reading {table or 'published figures'}"
        with console.progress(unit="rows", waiting=waiting) as tick, describe_run() as run:
            answered = answer(tick)
        board = scoreboard([answered], run)
        if rows_file:
            write_table(answered.table, rows_file)
        if page_file:
            from simulator.lab.report.scoreboard import render

            page_file.write_text(render(board), encoding="utf-8")
    if as_json:
        console.emit(as_numbers(board))
    else:
        print_board(board)
    if out_file is not None:
        count = len(answered.table)
        console.err.say(f"{count:,} {'row' if count == 1 else 'rows'}: {out_file}")
    if report is not None:
        console.err.say(f"report: {report}")


# Scoreboard of ``moesim validate`` in a terminal, and as JSON.


_GROUPS_SHOWN = 12
"""Groups of a suite that are printed, the worst first."""
_REASONS_SHOWN = 15
"""Reasons of a suite that are printed, the most frequent first."""
_WIDTH = 120
"""Columns of a table where no terminal says how wide it is."""


def as_numbers(board: Any) -> dict[str, Any]:
    """Convert the scoreboard for another program: not a number is null."""
    from simulator.lab.results.judgement import judge_targets
    from simulator.lab.results.scores import reasons, score_groups

    tables = {
        "scores": score_groups(board.rows),
        "targets": judge_targets(board),
        "unsupported": reasons(board.rows, "unsupported"),
        "extrapolated": reasons(board.rows, "extrapolated"),
    }
    tables["left_out"] = board.left_out
    return {
        "tables": board.run.get("tables", []),
        "skipped": board.run.get("skipped", {}),
        **{
            name: json.loads(table.to_json(orient="records", double_precision=6))
            for name, table in tables.items()
        },
    }


def print_board(board: Any) -> None:
    """Print the scores of each suite, its targets, the meaning of the words, and the rows that
    cannot be answered or compared, with reasons.
    """
    from simulator.lab.results.judgement import IN_SAMPLE, judge_targets, tally
    from simulator.lab.results.scores import list_suites, reasons, remarks

    out = console.out if console.out.is_terminal else Screen(width=_WIDTH)
    if board.rows.empty and not remarks(board):
        out.say("Nothing was measured in these rows, so there is no error to show.")
    if len(board.rows):
        for title, total, groups in list_suites(board):
            out.print(_scores_table(title, total, groups))
        out.print(_LEGEND)
        out.print()
        targets = judge_targets(board)
        if len(targets):
            out.print(_targets_table(targets))
            if counted := tally(targets):
                out.print(counted, style="bold")
        if board.in_sample():
            out.print(IN_SAMPLE, style="bold")
            out.print()
    for sentence in remarks(board):
        out.say(sentence, "yellow")
    if len(found := reasons(board.rows, "unsupported") if len(board.rows) else board.rows):
        out.print(_reasons_table(found))


_LEGEND = (
    "median, mean, p90: of the absolute error |predicted / measured - 1|. bias: "
    "median of predicted / measured - 1, above 0 where predictions are too large. no answer: "
    "share of rows that are unsupported. extrapol.: answered from outside what was measured, "
    "with a wider band. in band: share of measurements between a prediction's low and high, "
    "which are meant to hold 80 %. target: median/p90. within target here: "
    "of the errors on these rows, in sample or not."
)


def _scores_table(title: str, total: dict[Any, Any], groups: Any) -> Table:
    drawn = Table(title=title, **_LOOK)
    drawn.add_column("worst first", overflow="fold", min_width=11)
    errors = ("rows", "median", "mean", "p90", "bias")
    for heading in (*errors, "no\nanswer", "extra-\npol.", "in\nband"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("target", justify="right", no_wrap=True)
    drawn.add_column("within\ntarget\nhere", no_wrap=True)
    for row in groups.head(_GROUPS_SHOWN).to_dict("records"):
        limits = (100 * row["target_median"], 100 * row["target_p90"])
        target = "" if math.isnan(limits[0]) else "{:.0f}/{:.0f}".format(*limits)
        name, met = str(row["group"]) or "all", _verdict(row["within_target"])
        drawn.add_row(name, *_cells(row), target, met)
    if len(groups) > _GROUPS_SHOWN:
        drawn.add_row(Text(f"... and {len(groups) - _GROUPS_SHOWN} better groups", style="dim"))
    if len(groups) > 1:
        drawn.add_section()
        drawn.add_row("all", *_cells(total), style="bold")
    return drawn


_LOOK: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "title_justify": "left",
    "title_style": "bold",
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
}


def _cells(row: dict[Any, Any]) -> list[str]:
    limits = [
        [limit] if math.isfinite(limit) else []
        for limit in (row.get("target_median", math.nan), row.get("target_p90", math.nan))
    ]
    rest = (percent(row[key]) for key in ("unsupported", "extrapolated", "covered"))
    errors = (
        percent(row["median"], *limits[0], digits=1),
        percent(row["mean"]),
        percent(row["p90"], *limits[1]),
        percent(row["bias"], sign="+"),
    )
    return [f"{row['rows']:,}", *errors, *rest]


def percent(value: float, *limits: float, digits: int = 0, sign: str = "") -> str:
    """Write a share or an error, with as many digits as show on which side of a limit it lies.

    >>> percent(0.0812, digits=1), percent(12.3, digits=1), percent(0.253, 0.25)
    ('8.1%', '1230%', '25.3%')
    >>> percent(-0.02, sign="+"), percent(float("nan"))
    ('-2%', '-')
    """
    from simulator.lab.results.judgement import digits_beside

    if math.isnan(value):
        return "-"
    return (
        f"{value:{sign}.{digits_beside(value, *limits, digits=0 if abs(value) >= 1 else digits)}%}"
    )


def _verdict(met: bool | None) -> Text:
    return (
        Text("-", style="dim")
        if met is None
        else Text("yes", style="green")
        if met
        else Text("no", style="red")
    )


def _targets_table(found: Any) -> Table:
    drawn = Table(title="targets", **_LOOK)
    drawn.add_column("what", overflow="fold")
    drawn.add_column("asked\n(median / p90)", overflow="fold")
    every, some = bool(found["in_sample"].all()), bool(found["in_sample"].any())
    drawn.add_column(
        "in sample" if every else "on these rows\n(* in sample)" if some else "on these rows",
        overflow="fold",
    )
    drawn.add_column("models\nleft out", overflow="fold")
    drawn.add_column("rows", justify="right")
    drawn.add_column("met")
    for row in found.to_dict("records"):
        asked, seen, left_out = (_short(row[key]) for key in ("asked", "found", "left_out"))
        seen += " *" if row["in_sample"] and not every else ""
        left_out = f"{left_out}\n({row['left_out_rows']:,} rows)" if left_out else "-"
        drawn.add_row(row["what"], asked, seen, left_out, f"{row['rows']:,}", _verdict(row["met"]))
    return drawn


def _short(errors: str) -> str:
    return errors.replace("median ", "").replace(", p90", " /")


def _reasons_table(found: Any) -> Table:
    drawn = Table(title="what cannot be answered, and why", **_LOOK)
    drawn.add_column("suite")
    drawn.add_column("rows", justify="right")
    drawn.add_column("why", overflow="fold")
    for row in found.head(_REASONS_SHOWN).to_dict("records"):
        drawn.add_row(row["suite"], f"{row['rows']:,}", row["reason"])
    if len(found) > _REASONS_SHOWN:
        rest = found.iloc[_REASONS_SHOWN:]
        more = Text(f"... {len(rest)} further reasons", style="dim")
        drawn.add_row("", f"{int(rest['rows'].sum()):,}", more)
    return drawn
