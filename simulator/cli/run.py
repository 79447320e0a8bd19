"""``moesim run`` and ``moesim report``: replay a scenario, print the comparison, write the
report.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from simulator.base.errors import UserError
from simulator.cli import console
from simulator.cli.console import Address, AllowCode, AsJson, Out, Seed, Set, Workers

_SETTING_METRICS = ("ttft_p50_s", "tpot_p50_s", "output_tokens_per_s", "slo_attainment")
"""What is printed of each setting of a sweep."""
_LONGEST_NAME = 22
"""Characters of a line of a deployment's name over its column."""


def run(
    scenario: Annotated[
        list[str],
        typer.Argument(
            help="A scenario's TOML file, or the name of a shipped one; several make a sweep."
        ),
    ],
    out_folder: Out = None,
    fidelity: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="step (fast), rank or message (detailed; for small traces)."
        ),
    ] = "step",
    seed: Seed = None,
    overrides: Set = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="PATH=V1,V2,...",
            help="Run with each of these values, such as workload.rate_scale=1,2,4; several of "
            "these options are combined.",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", metavar="N", min=1, help="Run with so many seeds, counted on from the first."
        ),
    ] = 1,
    workers: Workers = None,
    address: Address = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Replay a workload on every deployment of a scenario, and write a results folder with a
    report.

    With --sweep, --seeds or several scenarios every combination is a run of its own, on all cores
    or on the nodes of a Ray cluster (--address), with one report over them. The deployments of one
    scenario are served one after another, or with --workers or --address at the same time; so are
    replicas of a long run whose balancer does not look at load.
    """
    if fidelity not in ("step", "rank", "message"):
        raise UserError(f"--fidelity {fidelity or repr(fidelity)}: must be step, rank or message")
    if sweep or seeds > 1 or len(scenario) > 1:
        _run_sweep(
            scenario,
            out_folder,
            fidelity,
            seed,
            overrides or [],
            sweep or [],
            seeds,
            workers,
            address,
            as_json,
        )
        return
    if address is not None:
        from simulator.runtime import require

        require("ray", "--address")
    from simulator.commands.run import run_scenario
    from simulator.report.page import render
    from simulator.results.folder import check_writable, write
    from simulator.scenario.scenario import load_scenario

    loaded, path = load_scenario(scenario[0], overrides or [], seed)
    folder = out_folder or Path("reports/out") / path.stem
    check_writable(folder)
    processes = 1 if workers is None and address is None else workers
    with console.progress("requests" if processes == 1 else "deployments") as tick:
        results = run_scenario(loaded, path, fidelity, tick, processes, address)  # type: ignore[arg-type]
        tick("writing the report", 0, None)
        write(results, folder, render)
    notes = [*results.run["workload"]["notes"], *results.run["notes"]]
    if as_json:
        summary = json.loads(results.summary.to_json(orient="records", double_precision=15))
        console.emit(
            {
                "folder": str(folder),
                "verdict": results.run["verdict"],
                "notes": notes,
                "summary": summary,
            }
        )
    else:
        print_run(results)
    console.say_notes(notes)
    console.err.print(
        f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True, markup=False
    )


def _run_sweep(
    scenarios: list[str],
    out_folder: Path | None,
    fidelity: str,
    seed: int | None,
    overrides: list[str],
    keys: list[str],
    num_seeds: int,
    workers: int | None,
    address: str | None,
    as_json: bool,
) -> None:
    from simulator.commands.sweep import list_points, run_sweep
    from simulator.results.sweep import check_writable
    from simulator.results.sweep_text import tell_sweep
    from simulator.runtime import require

    if address is not None:
        require("ray", "--address")
    points, values = list_points(scenarios, overrides, keys, seed, num_seeds)
    folder = out_folder or Path("reports/out") / f"{Path(scenarios[0]).stem}_sweep"
    check_writable(folder)
    with console.progress("points") as tick:
        found = run_sweep(points, values, folder, fidelity, workers, address, tick)  # type: ignore[arg-type]
    headline, reasons = tell_sweep(found)
    if as_json:
        rows = json.loads(found.table.to_json(orient="records", double_precision=15))
        refused = [point for point in found.run["points"] if "refusal" in point]
        console.emit(
            {
                "folder": str(folder),
                "verdict": {"headline": headline, "reasons": reasons},
                "refused": refused,
                "rows": rows,
            }
        )
    else:
        console.print_verdict(headline, reasons)
        _print_settings(found)
    console.err.print(
        f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True, markup=False
    )


def _print_settings(sweep: Any) -> None:
    """The medians of each setting and deployment, with their spread over seeds."""
    from simulator.results.formats import metric
    from simulator.results.metrics import METRICS
    from simulator.results.sweep import measure_spread
    from simulator.results.sweep_text import setting_text

    rows = {}
    for setting in sweep.settings:
        for deployment, own in sweep.rows_at(setting).groupby("deployment", sort=False):
            texts = []
            lost = ["num_lost"] if own["num_lost"].any() else []
            for name in (*_SETTING_METRICS, *lost):
                mean, spread, count = measure_spread(own, name)
                if count:
                    behind = f" ± {metric(name, spread, '')}" if spread == spread else ""
                    texts.append(f"{METRICS[name].label} {metric(name, mean, '')}{behind}")
            at = setting_text(setting)
            rows[f"{at}: {deployment}" if at else str(deployment)] = ", ".join(texts)
    console.print_rows(rows)


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Results folders; several are shown in one report.")
    ],
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help=(
                "HTML file; by default report.html (of several: comparison.html) "
                "in the first folder."
            ),
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build the report again from results folders of moesim run, or from one of a sweep, of moesim
    execute or of moesim plan.
    """
    from simulator.report.page import render
    from simulator.results.folder import merge, read
    from simulator.results.verdict import with_verdict

    if any(map(_is_plan, folders)):
        _report_plan(folders, out_file, as_json)
        return
    if any(map(_is_sweep, folders)):
        _report_sweep(folders, out_file, as_json)
        return
    executed = [folder for folder in folders if _is_executed(folder)]
    if len(executed) == 1 == len(folders):
        _report_executed(folders[0], out_file, as_json)
        return
    if executed:
        others = [folder for folder in folders if folder not in executed]
        mixed = f", and {others[0]} of moesim run" if others else ""
        raise UserError(
            f"{executed[0]}: is a folder of moesim execute{mixed}; name one such folder alone, "
            "or several of moesim run"
        )
    results = with_verdict(merge([(folder, read(folder)) for folder in folders]))
    target = out_file or folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    with console.whole_file(target) as partial:
        partial.write_text(render(results), encoding="utf-8")
    if as_json:
        console.emit({"report": str(target), "verdict": results.run["verdict"]})
    console.err.print(f"report: {target}", highlight=False, soft_wrap=True, markup=False)


def _is_executed(folder: Path) -> bool:
    """Whether a folder is of ``moesim execute``, which names the machine; one that cannot be read
    is left to the reader of runs.
    """
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(run, dict) and "machine" in run


def _report_executed(folder: Path, out_file: Path | None, as_json: bool) -> None:
    from simulator.report.execution import render
    from simulator.report.execution_verdict import verdict
    from simulator.results.executed import read

    try:
        executed = read(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: is not a whole results folder: {' '.join(str(error).split())}"
        ) from error
    target = out_file or folder / "report.html"
    page, found = render(executed), verdict(executed)
    with console.whole_file(target) as partial:
        partial.write_text(page, encoding="utf-8")
    if as_json:
        console.emit(
            {
                "report": str(target),
                "verdict": {"headline": found.headline, "reasons": found.reasons},
            }
        )
    console.err.print(f"report: {target}", highlight=False, soft_wrap=True, markup=False)


def _is_plan(folder: Path) -> bool:
    """As :func:`simulator.commands.plan.is_plan`, which is not imported for this: it brings the
    engine along.
    """
    return (folder / "plan.json").is_file()


def _is_sweep(folder: Path) -> bool:
    """Whether a folder is of a sweep, found out without pandas."""
    return (folder / "sweep.csv").is_file()


def _report_sweep(folders: list[Path], out_file: Path | None, as_json: bool) -> None:
    from simulator.report.sweep_page import render
    from simulator.results.sweep import read
    from simulator.results.sweep_text import tell_sweep

    if len(folders) > 1:
        sweep = next(filter(_is_sweep, folders))
        raise UserError(f"{sweep}: is a folder of a sweep; name it alone, or folders of its points")
    found = read(folders[0])
    target = out_file or folders[0] / "report.html"
    with console.whole_file(target) as partial:
        partial.write_text(render(found), encoding="utf-8")
    headline, reasons = tell_sweep(found)
    if as_json:
        verdict = {"headline": headline, "reasons": reasons}
        console.emit({"report": str(target), "verdict": verdict})
    console.err.print(f"report: {target}", highlight=False, soft_wrap=True, markup=False)


def _report_plan(folders: list[Path], out_file: Path | None, as_json: bool) -> None:
    from simulator.commands.plan import read
    from simulator.report.plan_page import render

    if len(folders) > 1:
        plan = next(filter(_is_plan, folders))
        raise UserError(
            f"{plan}: is a folder of moesim plan; name one such folder alone, "
            "or several of moesim run"
        )
    answer, run = read(folders[0])
    target = out_file or folders[0] / "report.html"
    with console.whole_file(target) as partial:
        partial.write_text(render(answer, run), encoding="utf-8")
    if as_json:
        console.emit(
            {
                "report": str(target),
                "verdict": {"headline": answer["headline"], "reasons": answer["reasons"]},
            }
        )
    console.err.print(f"report: {target}", highlight=False, soft_wrap=True, markup=False)


def print_run(results: Any) -> None:
    """Print the verdict with its reasons, then the table of key metrics."""
    verdict = results.run["verdict"]
    console.print_verdict(verdict["headline"], verdict["reasons"])
    for line in _comparison(results, console.out.width if console.out.is_terminal else 10_000):
        console.out.print(line, soft_wrap=True, highlight=False)


def _comparison(results: Any, width: int) -> Iterator[Text]:
    """The key metrics, a column a deployment, the best in bold; as many columns side by side as fit
    in ``width``.
    """
    from simulator.results.formats import KEY_METRICS, heading_unit, metric, winners
    from simulator.results.metrics import METRICS
    from simulator.results.verdict import short_names

    names = [textwrap.wrap(name, _LONGEST_NAME) for name in short_names(results).values()]
    currencies = [results.run["deployments"][name]["currency"] for name in results.deployments]
    rows: list[tuple[str, list[str], set[int]]] = [
        ("", list(lines), set()) for lines in zip_longest(*names, fillvalue="")
    ]
    for key in (
        *KEY_METRICS,
        "kv_used_max",
        "load_imbalance",
        "uniform_imbalance",
        "dropped_share",
    ):
        values = [float(value) for value in results.summary[key]]
        unit = heading_unit(key)
        cells = [
            f"{metric(key, value, currency)} {unit}".rstrip()
            for value, currency in zip(values, currencies, strict=True)
        ]
        if any(value == value for value in values):
            rows.append((METRICS[key].label, cells, winners(key, values, is_open=results.is_open)))
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
                line.append(
                    cells[number].rjust(widths[number]),
                    "bold" if number in best or not label else "",
                )
            yield line
        first = last
        if first < len(names):
            yield Text()
