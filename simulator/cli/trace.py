"""``moesim trace``: describe, convert and make request traces; ``trace record`` is in
:mod:`simulator.cli.record`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.base.errors import UserError, did_you_mean
from simulator.base.partial import whole_file
from simulator.cli import console, record
from simulator.cli.console import AllowCode, AsJson, Seed
from simulator.cli.trace_cache import cache

app = typer.Typer(
    no_args_is_help=True,
    help="Describe, convert and make request traces, and record expert choices.",
)
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse a file in which rows have to be left out or sorted."),
]
app.add_typer(record.app, name="record")
app.command()(cache)


@app.command()
def info(
    source: Annotated[
        str, typer.Argument(help="A trace file or folder, or a workload's name or TOML file.")
    ],
    seed: Seed = None,
    strict: Strict = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Describe a trace: where it comes from, rate, busiest hour, burstiness, lengths, prefixes, and
    what was repaired in it.
    """
    from simulator.workload.hours import describe_hours
    from simulator.workload.requests import describe

    trace = _load_trace(source, seed, strict)
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
    source: Annotated[str, typer.Argument(help="A trace in any known format.")],
    target: Annotated[Path, typer.Argument(help="Parquet or CSV file to write.")],
    strict: Strict = False,
    allow_code: AllowCode = False,
) -> None:
    """Convert a trace to our own table (Parquet or CSV)."""
    _write_trace(source, None, target, strict)


@app.command()
def generate(
    workload: Annotated[
        str, typer.Argument(help="A shipped workload's name, or a workload's TOML file.")
    ],
    target: Annotated[Path, typer.Argument(help="Parquet or CSV file to write.")],
    seed: Seed = None,
    allow_code: AllowCode = False,
) -> None:
    """Write the requests that a workload generates."""
    _write_trace(workload, seed, target, strict=False)


def _load_trace(source: str, seed: int | None, strict: bool) -> Any:
    from simulator.base.data import available_files
    from simulator.config.workload import WorkloadSpec
    from simulator.workload.requests import load_requests, read_trace

    path, shipped = Path(source), available_files("workloads/requests")
    if path.exists() and path.suffix != ".toml":
        return read_trace(path, strict=strict)
    if not path.exists() and source not in shipped:
        raise UserError(
            f"{source}: no such file, and no workload of that name; {did_you_mean(source, shipped)}"
        )
    return load_requests(WorkloadSpec(requests=source), Path.cwd(), seed or 0, source)


def _write_trace(source: str, seed: int | None, target: Path, strict: bool) -> None:
    from simulator.workload.traces.table import write_table

    if target.suffix not in (".parquet", ".csv"):
        raise UserError(f"{target}: must end in .parquet or .csv, which says the format to write")
    with whole_file(target) as partial:
        trace = _load_trace(source, seed, strict)
        write_table(trace, partial)
    console.say_notes(trace.notes)
    console.err.say(f"{trace.num_requests:,} requests: {target}")
