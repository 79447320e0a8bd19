"""``moesim validate``: how far predictions are from measurements."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from typer.core import TyperCommand

from simulator.base.errors import UserError
from simulator.base.partial import whole_file
from simulator.cli import console
from simulator.cli.console import Screen

if TYPE_CHECKING:
    from simulator.lab.results.scores import Scoreboard

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


_WIDTH = 120
"""Columns of a table where no terminal says how wide it is."""


def as_numbers(board: Scoreboard) -> dict[str, object]:
    """Convert the scoreboard for another program: not a number is null."""
    from simulator.lab.results.scores import judge_targets, reasons, score_groups

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


def print_board(board: Scoreboard) -> None:
    """Print the findings and the tables, whose texts fold where a terminal is narrow."""
    console.print_verdict(board.verdict)
    out = console.out if console.out.is_terminal else Screen(width=_WIDTH)
    for title, tables in groupby(board.list_tables(), key=lambda table: table.title):
        out.print(title, style="bold")
        for table in tables:
            drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
            for heading in table.rows[0]:
                drawn.add_column(str(heading), overflow="fold")
            for row in table.rows[1:]:
                drawn.add_row(*map(str, row))
            out.print(drawn)
        out.print(f"{table.lead}\n")
