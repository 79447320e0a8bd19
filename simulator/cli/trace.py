"""``moesim trace``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from simulator.base.errors import UserError, did_you_mean
from simulator.base.partial import whole_file
from simulator.cli import console, record

if TYPE_CHECKING:
    from simulator.workload.traces import RequestTrace


def cache(
    recording: Annotated[Path, console.argument("A recording of the experts that tokens chose.")],
    model: Annotated[str, console.option("The model that it was recorded of.", "NAME")],
    slots: Annotated[
        list[int] | None,
        console.option(
            "Experts of each layer in the cache; by default a quarter, a half and three "
            "quarters of them. May be given several times.",
            "N",
            min=1,
        ),
    ] = None,
    streams: Annotated[int, console.option("Sequences served at once.", "N", min=1)] = 1,
    caching: Annotated[
        list[str] | None,
        console.option("Caching policy; by default each in turn.", "KIND"),
    ] = None,
    prefetching: Annotated[str, console.option("Prefetching policy.", "KIND")] = "none",
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Replay a recording through caches that hold a few experts of each layer, and say what share
    of the experts was found there. Policies learn from its first half, and its second is replayed.
    """
    from simulator.commands.cache_trace import replay_recording

    tables = [{"kind": kind} for kind in caching or ()]
    found = replay_recording(recording, model, slots or (), streams, tables, {"kind": prefetching})
    if as_json:
        console.emit([row._asdict() for row in found])
        return
    table = Table("caching", "slots a layer", "hits", "fetched ahead", "uploads a layer and step")
    for row in found:
        rates = (f"{row.hit_rate:.1%}", f"{row.ahead_rate:.1%}", f"{row.uploads:.2f}")
        table.add_row(row.caching, f"{row.slots:,}", *rates)
    console.out.print(table)


app = typer.Typer(
    no_args_is_help=True,
    help="Describe, convert and make request traces, and record expert choices.",
)
Strict = Annotated[
    bool,
    console.option("Refuse a file in which rows have to be left out or sorted.", flag="--strict"),
]
Column = Annotated[
    list[str] | None,
    console.option(
        "Name of a log's column, such as arrival=evt_epoch, input=ctx_toks or output=gen_toks.",
        "KEY=NAME",
        flag="--column",
    ),
]
app.add_typer(record.app, name="record")
app.command()(cache)


@app.command()
def info(
    source: Annotated[
        str, console.argument("A trace file or folder, or a workload's name or TOML file.")
    ],
    seed: console.Seed = None,
    strict: Strict = False,
    column: Column = None,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Describe a trace: where it comes from, rate, busiest hour, burstiness, lengths, prefixes, and
    what was repaired in it.
    """
    from simulator.workload.requests import describe, describe_hours

    trace = _load_trace(source, seed, strict, column)
    found = {
        "source": source,
        "provenance": trace.provenance,
        **describe(trace),
        **describe_hours(trace),
        "notes": list(trace.notes),
    }
    if as_json:
        console.emit(found)
    else:
        console.print_rows({key: console.plain(value) for key, value in found.items()})


@app.command()
def convert(
    source: Annotated[str, console.argument("A trace in any known format.")],
    target: Annotated[Path, console.argument("Parquet or CSV file to write.")],
    strict: Strict = False,
    column: Column = None,
    allow_code: console.AllowCode = False,
) -> None:
    """Convert a trace to our own table (Parquet or CSV)."""
    _write_trace(source, None, target, strict, column)


@app.command()
def generate(
    workload: Annotated[
        str, console.argument("A shipped workload's name, or a workload's TOML file.")
    ],
    target: Annotated[Path, console.argument("Parquet or CSV file to write.")],
    seed: console.Seed = None,
    allow_code: console.AllowCode = False,
) -> None:
    """Write the requests that a workload generates."""
    _write_trace(workload, seed, target, strict=False)


def _load_trace(
    source: str, seed: int | None, strict: bool, column: list[str] | None
) -> RequestTrace:
    from simulator.base.data import available_files
    from simulator.base.frozen import validate
    from simulator.config.workload import LogColumns, WorkloadSpec
    from simulator.workload.requests import load_requests, read_trace

    path, shipped = Path(source), available_files("workloads/requests")
    if path.exists() and path.suffix != ".toml":
        given = dict(one.partition("=")[::2] for one in column or ())
        columns = validate(LogColumns, given, "--column")
        return read_trace(path, columns=columns, strict=strict)
    if column:
        raise UserError(f"--column {column[0]}: {source} is no log, and has no columns")
    if not path.exists() and source not in shipped:
        raise UserError(
            f"{source}: no such file, and no workload of that name; {did_you_mean(source, shipped)}"
        )
    return load_requests(WorkloadSpec(requests=source), Path.cwd(), seed or 0, source)


def _write_trace(
    source: str, seed: int | None, target: Path, strict: bool, column: list[str] | None = None
) -> None:
    from simulator.workload.traces.table import write_table

    if target.suffix not in (".parquet", ".csv"):
        raise UserError(f"{target}: must end in .parquet or .csv, which says the format to write")
    with whole_file(target) as partial:
        trace = _load_trace(source, seed, strict, column)
        write_table(trace, partial)
    console.say_notes(trace.notes)
    console.err.say(f"{trace.num_requests:,} requests: {target}")
