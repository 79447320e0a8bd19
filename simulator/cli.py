"""The ``moesim`` command. All printing is here: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from simulator import __version__
from simulator.errors import UserError

app = typer.Typer(
    name="moesim",
    help="Replay real traffic on mixture-of-experts and dense deployments, and see which serves it better and why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True)
out = Console()

Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; by default reports/out/<name>.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Overrides the scenario's seed.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override any key, such as workload.num_requests=1000.")
]


def main() -> None:
    """Run the command; exit status 2 for wrong input, 1 for a defect of ours, 130 for Ctrl-C."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        err.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        err.print("stopped; nothing was written", highlight=False)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error of the command line itself
            error.show()
            sys.exit(error.exit_code)
        traceback.print_exc()
        err.print(
            f"\nThis is a defect of moesim {__version__}, not of your input. Please report it with the lines above and the scenario.",
            highlight=False,
        )
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"moesim {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Replay real traffic on mixture-of-experts and dense deployments, and see which serves it better and why."""


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A scenario's TOML file, or the name of a shipped one.")],
    out_folder: Out = None,
    fidelity: Annotated[str, typer.Option(help="step (fast), rank or message (detailed, for small traces).")] = "step",
    seed: Seed = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Replay a workload on every deployment of a scenario, and write a results folder with a report."""
    from simulator.report.page import render
    from simulator.results import check_writable, write
    from simulator.run import run_scenario
    from simulator.scenario import load_scenario

    if fidelity not in ("step", "rank", "message"):
        raise UserError(f"--fidelity {fidelity}: must be step, rank or message")
    loaded, path = load_scenario(scenario, overrides or [], seed)
    folder = out_folder or Path("reports/out") / path.stem
    check_writable(folder)
    with _progress() as tick:
        results = run_scenario(loaded, path, fidelity, tick)  # type: ignore[arg-type]
    write(results, folder, render)
    if as_json:
        summary = json.loads(results.summary.to_json(orient="records"))
        print(json.dumps({"folder": str(folder), "verdict": results.run["verdict"], "summary": summary}))  # noqa: T201
    else:
        _print_run(results, folder)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Results folders; several are shown in one report.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="HTML file to write; by default report.html in the first folder.")
    ] = None,
) -> None:
    """Build the report again from results folders."""
    from simulator.report.page import render
    from simulator.results import merge, read

    results = merge([(folder, read(folder)) for folder in folders])
    target = out_file or folders[0] / "report.html"
    if target.parent != Path() and not target.parent.is_dir():
        raise UserError(f"--out {target}: the folder {target.parent} does not exist")
    target.write_text(render(results))
    err.print(f"report: {target}", highlight=False, soft_wrap=True)


@app.command("list")
def list_(
    family: Annotated[str | None, typer.Argument(help="A family, such as models, clusters or routing; absent = all.")] = None,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """List what there is: scenarios, workloads, models, clusters, accelerators and every kind of policy."""
    from simulator.catalogue import catalogue

    found = catalogue(family)
    if as_json:
        print(json.dumps(found))  # noqa: T201
        return
    for name, entries in found.items():
        if markdown:
            print(f"### {name}\n\n| name | what it is |\n|---|---|")  # noqa: T201
            print("".join(f"| `{entry}` | {text} |\n" for entry, text in entries.items()))  # noqa: T201
            continue
        table = Table(title=name, title_justify="left", box=None, show_header=False, padding=(0, 2))
        for entry, text in entries.items():
            table.add_row(f"[bold]{entry}[/bold]", text)
        out.print(table)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A scenario, model, cluster, accelerator or calibration file.")],
    overrides: Set = None,
) -> None:
    """Say whether a file is right, down to every name in it and whether the models fit their GPUs; runs nothing."""
    from simulator.check import check_file

    err.print(check_file(file, overrides or []), highlight=False, soft_wrap=True, markup=False)


@app.command()
def schema(what: Annotated[str, typer.Argument(help="scenario, model, accelerator, cluster or calibration.")] = "scenario") -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from simulator.check import schema_of

    print(json.dumps(schema_of(what), indent=1))  # noqa: T201


trace_app = typer.Typer(no_args_is_help=True, help="Describe, convert and make request traces.")
app.add_typer(trace_app, name="trace")


@trace_app.command("info")
def trace_info(
    source: Annotated[str, typer.Argument(help="A trace file or folder, or a shipped workload's name.")],
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Describe a trace: format, rate, burstiness, lengths, prefixes."""
    from simulator.workload import describe

    trace, format_ = _load_trace(source, seed)
    found = {"source": source, "format": format_, "provenance": trace.provenance, **describe(trace), "notes": list(trace.notes)}
    if as_json:
        print(json.dumps(found))  # noqa: T201
        return
    table = Table(box=None, show_header=False, padding=(0, 2))
    for key, value in found.items():
        table.add_row(f"[bold]{key}[/bold]", _plain(value))
    out.print(table)


@trace_app.command("convert")
def trace_convert(
    source: Annotated[str, typer.Argument(help="A trace in any known format.")],
    target: Annotated[Path, typer.Argument(help="Parquet or CSV file to write.")],
) -> None:
    """Convert a trace to our own table (Parquet or CSV)."""
    _write_trace(_load_trace(source, None)[0], target)


@trace_app.command("generate")
def trace_generate(
    workload: Annotated[str, typer.Argument(help="A shipped workload's name, or a workload's TOML file.")],
    target: Annotated[Path, typer.Argument(help="Parquet or CSV file to write.")],
    seed: Seed = 0,
) -> None:
    """Write the requests that a workload generates."""
    _write_trace(_load_trace(workload, seed)[0], target)


def _load_trace(source: str, seed: int | None) -> tuple[Any, str]:
    from simulator.spec.workload import WorkloadSpec
    from simulator.workload import load_requests, read_trace

    path = Path(source)
    if path.exists() and path.suffix != ".toml":
        return read_trace(path), "read"
    return load_requests(WorkloadSpec(requests=source), Path.cwd(), seed or 0, source), "generated"


def _write_trace(trace: Any, target: Path) -> None:
    from simulator.traces.table import write_table

    write_table(trace, target)
    err.print(f"{trace.num_requests:,} requests: {target}", highlight=False, soft_wrap=True)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar a deployment on standard error; one plain line each where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"), TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:

        def tick(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
                if not err.is_terminal:
                    err.print(f"{name}: {total:,} requests", highlight=False)
            bars.update(tasks[name], completed=done)

        yield tick


def _print_run(results: Any, folder: Path) -> None:
    from simulator.metrics import METRICS
    from simulator.report.formats import KEY_METRICS, heading_unit, metric

    out.print(results.run["verdict"]["headline"], style="bold", highlight=False, soft_wrap=True, markup=False)
    for reason in results.run["verdict"]["reasons"]:
        out.print(f"- {reason}", highlight=False, soft_wrap=True, markup=False)
    table = Table(box=None, padding=(0, 2))
    table.add_column("")
    for name in results.deployments:
        table.add_column(name, justify="right")
    for key in (*KEY_METRICS, "utilisation", "load_imbalance"):
        unit = heading_unit(key)
        cells = [
            metric(key, float(row[key]), results.run["deployments"][row["deployment"]]["currency"])
            for _, row in results.summary.iterrows()
        ]
        table.add_row(f"{METRICS[key].label} ({unit})" if unit else METRICS[key].label, *cells)
    out.print(table)
    err.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
