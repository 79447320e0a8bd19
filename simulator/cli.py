"""The ``moesim`` command. All printing is here: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from simulator import __version__
from simulator.errors import UserError, did_you_mean

app = typer.Typer(
    name="moesim",
    help="Replay real traffic on mixture-of-experts and dense deployments, and see which serves it better and why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True)
out = Console()
_LONGEST_NAME = 22
"""Characters of a line of a deployment's name over its column."""


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--seed {text}: must be a whole number of at least 0")
    return int(text)


Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write; by default reports/out/<name>.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Seed = Annotated[int | None, typer.Option("--seed", parser=_seed, metavar="N", help="Overrides the scenario's seed.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override any key, such as workload.num_requests=1000.")
]
_INTERRUPTED = 130


def main() -> None:
    """Run the command; exit status 2 for wrong input, 1 for a defect of ours, 130 for Ctrl-C."""
    if "" not in sys.path:
        sys.path.append("")  # a user's own policies (kind = "my_package.my_policy") are found from the current folder
    try:
        if app(standalone_mode=False) == _INTERRUPTED:  # typer returns the status of a Ctrl-C instead of raising it
            raise KeyboardInterrupt
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        err.print("stopped; nothing was written", highlight=False)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # the reader has seen enough (moesim list | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):
            _fail_usage(error)
        traceback.print_exc()
        err.print(
            f"\nThis is a defect of moesim {__version__}, not of your input. Please report it with the lines above and the scenario.",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)


def _fail_usage(error: Any) -> NoReturn:
    """A usage error of the command line itself, in one line; without any argument the help has been printed already."""
    message = error.format_message()
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        sys.exit(error.exit_code)
    command = error.ctx.command_path if getattr(error, "ctx", None) else "moesim"
    _fail(f"{message[0].lower()}{message[1:].rstrip('.')}; see '{command} --help'")


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
    fidelity: Annotated[
        str, typer.Option(metavar="NAME", help="step (fast), rank or message (detailed; for small traces).")
    ] = "step",
    seed: Seed = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Replay a workload on every deployment of a scenario, and write a results folder with a report."""
    if fidelity not in ("step", "rank", "message"):
        raise UserError(f"--fidelity {fidelity or repr(fidelity)}: must be step, rank or message")
    from simulator.report.page import render
    from simulator.results import check_writable, write
    from simulator.run import run_scenario
    from simulator.scenario import load_scenario

    loaded, path = load_scenario(scenario, overrides or [], seed)
    folder = out_folder or Path("reports/out") / path.stem
    check_writable(folder)
    with _progress() as tick:
        results = run_scenario(loaded, path, fidelity, tick)  # type: ignore[arg-type]
        tick("writing the report", 0, None)
        write(results, folder, render)
    if as_json:
        summary = json.loads(results.summary.to_json(orient="records", double_precision=15))
        _emit({"folder": str(folder), "verdict": results.run["verdict"], "summary": summary})
    else:
        _print_run(results)
    err.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Results folders; several are shown in one report.")],
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="HTML file; by default report.html (of several: comparison.html) in the first folder."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build the report again from results folders."""
    from simulator.report.page import render
    from simulator.results import merge, read
    from simulator.verdict import with_verdict

    results = with_verdict(merge([(folder, read(folder)) for folder in folders]))
    target = out_file or folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    with _whole_file(target) as partial:
        partial.write_text(render(results), encoding="utf-8")
    if as_json:
        _emit({"report": str(target), "verdict": results.run["verdict"]})
    err.print(f"report: {target}", highlight=False, soft_wrap=True, markup=False)


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
        _emit(found)
    elif markdown:
        for name, entries in found.items():
            print(f"### {name}\n\n| name | what it is |\n|---|---|")  # noqa: T201
            print("".join(f"| `{entry}` | {text} |\n" for entry, text in entries.items()))  # noqa: T201
    elif family is not None:
        _print_rows(found[family])
    else:
        _print_rows({name: ", ".join(entries) for name, entries in found.items()})
        err.print("moesim list FAMILY says what each is", highlight=False, style="dim")


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="A scenario, workload, model, cluster, accelerator or calibration file.")],
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a file is right, down to every name in it and whether the models fit their GPUs; runs nothing."""
    from simulator.check import check_file

    found = check_file(file, overrides or [])
    if as_json:
        _emit(found._asdict())
    else:
        out.print(f"{found.file}: a valid {found.kind}{found.details}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def schema(
    what: Annotated[str, typer.Argument(help="scenario, workload, model, accelerator, cluster or calibration.")] = "scenario",
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from simulator.check import schema_of

    print(json.dumps(schema_of(what), indent=1))  # noqa: T201


trace_app = typer.Typer(no_args_is_help=True, help="Describe, convert and make request traces.")
app.add_typer(trace_app, name="trace")


@trace_app.command("info")
def trace_info(
    source: Annotated[str, typer.Argument(help="A trace file or folder, or a workload's name or TOML file.")],
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Describe a trace: where it comes from, rate, burstiness, lengths, prefixes."""
    from simulator.workload import describe

    trace = _load_trace(source, seed)
    found = {"source": source, "provenance": trace.provenance, **describe(trace), "notes": list(trace.notes)}
    if as_json:
        _emit(found)
    else:
        _print_rows({key: _plain(value) for key, value in found.items()})


@trace_app.command("convert")
def trace_convert(
    source: Annotated[str, typer.Argument(help="A trace in any known format.")],
    target: Annotated[Path, typer.Argument(help="Parquet or CSV file to write.")],
) -> None:
    """Convert a trace to our own table (Parquet or CSV)."""
    _write_trace(source, None, target)


@trace_app.command("generate")
def trace_generate(
    workload: Annotated[str, typer.Argument(help="A shipped workload's name, or a workload's TOML file.")],
    target: Annotated[Path, typer.Argument(help="Parquet or CSV file to write.")],
    seed: Seed = None,
) -> None:
    """Write the requests that a workload generates."""
    _write_trace(workload, seed, target)


def _load_trace(source: str, seed: int | None) -> Any:
    from simulator.data import available_files
    from simulator.spec.workload import WorkloadSpec
    from simulator.workload import load_requests, read_trace

    path, shipped = Path(source), available_files("workloads/requests")
    if path.exists() and path.suffix != ".toml":
        return read_trace(path)
    if not path.exists() and source not in shipped:
        raise UserError(f"{source}: no such file, and no workload of that name; {did_you_mean(source, shipped)}")
    return load_requests(WorkloadSpec(requests=source), Path.cwd(), seed or 0, source)


def _write_trace(source: str, seed: int | None, target: Path) -> None:
    from simulator.traces.table import write_table

    if target.suffix not in (".parquet", ".csv"):
        raise UserError(f"{target}: must end in .parquet or .csv, which says the format to write")
    with _whole_file(target) as partial:
        trace = _load_trace(source, seed)
        write_table(trace, partial)
    err.print(f"{trace.num_requests:,} requests: {target}", highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _whole_file(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``target`` when all went well."""
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file to write")
    if not target.parent.is_dir():
        raise UserError(f"{target}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise UserError(f"{target}: no permission to write in {target.parent}")
    partial = target.with_name(f".moesim-partial-{os.getpid()}{target.suffix}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar a deployment on standard error; one plain line each where that is no terminal."""
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        waiting = bars.add_task("checking models, clusters and requests", total=None, count="")

        def tick(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                bars.update(waiting, visible=False)
                tasks[name] = bars.add_task(name, total=total, count="")
                if total is not None and not err.is_terminal:
                    err.print(f"{name}: {total:,} requests", highlight=False, soft_wrap=True, markup=False)
            bars.update(tasks[name], completed=done, count=f"{done:,} of {total:,} requests" if total else "")

        yield tick


def _emit(value: Any) -> None:
    print(json.dumps(value))  # noqa: T201


def _print_rows(rows: dict[str, str]) -> None:
    """A name and what it is; long texts are wrapped on a terminal, and stay on one line where another program reads."""
    name_width = max((len(name) for name in rows), default=0) + 2
    for name, text in rows.items():
        lines = textwrap.wrap(text, max(20, out.width - name_width), break_on_hyphens=False) if out.is_terminal else [text]
        for number, line in enumerate(lines or [""]):
            row = Text(name.ljust(name_width), "bold") if number == 0 else Text(" " * name_width)
            out.print(row.append(line, "not bold"), soft_wrap=True, highlight=False)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _print_run(results: Any) -> None:
    verdict = results.run["verdict"]
    out.print(_wrapped(verdict["headline"], ""), style="bold", highlight=False, soft_wrap=True, markup=False)
    for reason in verdict["reasons"]:
        out.print(_wrapped(reason, "  "), highlight=False, soft_wrap=True, markup=False)
    out.print()
    for line in _comparison(results, out.width if out.is_terminal else 10_000):
        out.print(line, soft_wrap=True, highlight=False)


def _wrapped(text: str, indent: str) -> str:
    first = "- " if indent else ""
    return textwrap.fill(text, out.width, initial_indent=first, subsequent_indent=indent) if out.is_terminal else first + text


def _comparison(results: Any, width: int) -> Iterator[Text]:
    """The key metrics, a column a deployment, the best in bold; as many columns side by side as fit in ``width``."""
    from simulator.metrics import METRICS
    from simulator.report.formats import KEY_METRICS, heading_unit, metric, winners
    from simulator.verdict import short_names

    names = [textwrap.wrap(name, _LONGEST_NAME) for name in short_names(results).values()]
    currencies = [results.run["deployments"][name]["currency"] for name in results.deployments]
    rows: list[tuple[str, list[str], set[int]]] = [("", list(lines), set()) for lines in zip_longest(*names, fillvalue="")]
    for key in (*KEY_METRICS, "kv_used_max", "load_imbalance"):
        values = [float(value) for value in results.summary[key]]
        unit = heading_unit(key)
        cells = [f"{metric(key, value, currency)} {unit}".rstrip() for value, currency in zip(values, currencies, strict=True)]
        if any(value == value for value in values):
            rows.append((METRICS[key].label, cells, winners(key, values) if len(set(cells)) > 1 else set()))
    label_width = max(len(label) for label, _, _ in rows)
    widths = [max(len(cells[number]) for _, cells, _ in rows) + 3 for number in range(len(names))]
    first = 0
    while first < len(names):
        last = first + 1
        while last < len(names) and label_width + sum(widths[first : last + 1]) <= width:
            last += 1
        for label, cells, best in rows:
            if not any(cells[first:last]):
                continue
            line = Text(label.ljust(label_width))
            for number in range(first, last):
                line.append(cells[number].rjust(widths[number]), "bold" if number in best or not label else "")
            yield line
        first = last
        if first < len(names):
            yield Text()


if __name__ == "__main__":
    main()
