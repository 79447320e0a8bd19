"""``moesim run``, ``moesim report`` and ``moesim diff``: replay a scenario or simulate a training,
print the comparison, write the report, compare results folders.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text

from simulator.base.errors import UserError
from simulator.cli import asked, console

if TYPE_CHECKING:
    from simulator.results.folder import Results
    from simulator.results.sweep import Sweep
    from simulator.scenario.scenario import Scenario, TrainingScenario

_SETTING_METRICS = ("ttft_p50_s", "tpot_p50_s", "output_tokens_per_s", "slo_attainment")
"""Metrics printed for each setting of a sweep."""
_LONGEST_NAME = 22
"""Characters of a line of a deployment's name over its column."""
_MARK = " *"
"""Mark behind figures that are not determined."""


def run(
    scenario: Annotated[
        list[str] | None,
        console.argument(
            "A scenario's TOML file, or the name of a shipped one; several make a sweep. Or ask by "
            "the options below."
        ),
    ] = None,
    models: asked.Models = None,
    cluster: asked.Cluster = None,
    gpus: Annotated[
        int | None,
        console.option(
            "GPUs of each model, without a file; by default the fewest on which all fit.", "N"
        ),
    ] = None,
    rate: asked.Rate = None,
    num_input: asked.Input = None,
    num_output: asked.Output = None,
    ttft: asked.Ttft = None,
    tpot: asked.Tpot = None,
    made_folder: Annotated[
        Path | None,
        console.option(
            "Run again what a results folder was made from, as its run.json has it.",
            "FOLDER",
            flag="--from",
        ),
    ] = None,
    out_folder: console.Out = None,
    fidelity: Annotated[
        str | None,
        console.option(
            "step (fast, the default), rank or message (detailed; for small traces).", "NAME"
        ),
    ] = None,
    seed: console.Seed = None,
    overrides: console.Set = None,
    sweep: Annotated[
        list[str] | None,
        console.option(
            "Run with each of these values, such as workload.rate_scale=1,2,4; several of "
            "these options are combined.",
            "PATH=V1,V2,...",
        ),
    ] = None,
    seeds: Annotated[
        int,
        console.option("Run with so many seeds, counted on from the first.", "N", min=1),
    ] = 1,
    workers: console.Workers = None,
    address: console.Address = None,
    explain: Annotated[
        bool,
        console.option(
            "Say where the time of a token goes, and which changes would help most.",
            flag="--explain",
        ),
    ] = False,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Replay a workload on every deployment of a scenario, and write a results folder with a
    report.

    A training scenario simulates a training step of each deployment.

    With --sweep, --seeds or several scenarios every combination is a run of its own, on all cores
    or on the nodes of a Ray cluster (--address), with one report over them. The deployments of one
    scenario are served one after another, or with --workers or --address at the same time; so are
    replicas of a long run whose balancer does not look at load.
    """
    given = asked.Asked(models, cluster, rate, num_input, num_output, ttft, tpot)
    if scenario or made_folder:
        asked.refuse_beside("run", given)
        console.refuse_options("is for a run without a file", gpus=gpus is not None)
    else:
        out_folder = out_folder or Path("reports/out/asked_run")
        scenario = [_write_comparison(out_folder, given, gpus)]
    if made_folder and (scenario or sweep or seeds > 1):
        raise UserError("--from runs one folder's scenario again; leave files and sweeps out")
    scenario = scenario or []
    if sweep or seeds > 1 or len(scenario) > 1:
        if explain:
            raise UserError("--explain explains one run: leave it out, or run one scenario alone")
        from simulator.commands.run import check_fidelity
        from simulator.commands.sweep import sweep as run_points

        folder = console.find_folder(out_folder, scenario[0], "_sweep")
        with console.progress("points") as tick:
            points = run_points(
                scenario,
                folder,
                sweep or [],
                overrides=overrides or [],
                seed=seed,
                num_seeds=seeds,
                fidelity=check_fidelity(fidelity or "step"),
                workers=workers,
                address=address,
                progress=tick,
            )
        _finish_sweep(points, folder, as_json)
        return
    from simulator.scenario.jobs import SCENARIOS, Source, load_job
    from simulator.scenario.scenario import Scenario

    source: Source = scenario[0] if scenario else ""
    if made_folder:
        from simulator.commands.folders import recall_job

        source, earlier = recall_job(made_folder)
        fidelity = fidelity or earlier
    job = load_job(source, SCENARIOS, overrides or [], seed)
    folder = console.find_folder(out_folder, job.where, "_again" if made_folder else "")
    if isinstance(job, Scenario):
        _run_serving(job, folder, as_json, fidelity or "step", workers, address, explain)
        return
    console.refuse_options(
        "a training scenario has one fidelity and no requests",
        fidelity=fidelity not in (None, "step"),
        explain=explain,
        workers=workers is not None,
        address=address is not None,
    )
    _run_training(job, folder, as_json)


def _write_comparison(folder: Path, given: asked.Asked, num_gpus: int | None) -> str:
    """Write the scenario that options ask for, and say what they leave open."""
    from simulator.planner.smallest import compare

    file = asked.write_asked("run", folder, given, partial(compare, num_gpus=num_gpus))
    console.say_notes(
        ["each model has the smallest replicas that it fits in; --gpus N gives it more of them"]
    )
    return file


def _run_serving(
    scenario: Scenario,
    folder: Path,
    as_json: bool,
    fidelity: str,
    workers: int | None,
    address: str | None,
    explain: bool,
) -> None:
    """Replay a scenario, write its folder, and print the comparison."""
    from simulator.commands.report import write_results
    from simulator.commands.run import check_fidelity, run
    from simulator.results.folder import Results

    level = check_fidelity(fidelity)
    Results.check_writable(folder)
    processes = 1 if workers is None and address is None and not explain else workers
    unit = "" if explain else "requests" if processes == 1 else "deployments"
    with console.progress(unit) as tick:
        results = run(
            scenario,
            fidelity=level,
            workers=processes,
            address=address,
            explain=explain,
            progress=tick,
        )
        tick("writing the report", 0, None)
        write_results(results, folder)
    notes = [*results.run["workload"]["notes"], *results.run["notes"]]

    tables = {"summary": results.summary, **results.listed}
    numbers = {
        "verdict": results.verdict,
        "notes": notes,
        **{name: console.rows_of(table) for name, table in tables.items()},
        "bands": results.run["bands"],
        **({"explanation": results.run["explanation"]} if explain else {}),
    }

    def show() -> None:
        print_run(results)
        if explain:
            print_explanation(results)

    console.finish(as_json, folder, numbers, show, notes)


def _finish_sweep(sweep: Sweep, folder: Path, as_json: bool) -> None:
    """Print the verdict, and the medians of each setting and deployment, with their spread over
    seeds.
    """
    from simulator.results.availability import list_told
    from simulator.results.metrics import METRICS, metric
    from simulator.results.sweep import measure_spread, setting_text

    rows = {}
    for setting in sweep.settings:
        for deployment, own in sweep.rows_at(setting).groupby("deployment", sort=False):
            texts = []
            for name in (*_SETTING_METRICS, *list_told(own)):
                mean, spread, count = measure_spread(own, name)
                if count:
                    behind = f" ± {metric(name, spread, '')}" if spread == spread else ""
                    texts.append(f"{METRICS[name].label} {metric(name, mean, '')}{behind}")
            at = setting_text(setting)
            rows[f"{at}: {deployment}" if at else str(deployment)] = ", ".join(texts)

    def show() -> None:
        console.print_verdict(sweep.verdict)
        console.print_rows(rows)

    refused = [point for point in sweep.run["points"] if "refusal" in point]
    numbers = {"verdict": sweep.verdict, "refused": refused, "rows": console.rows_of(sweep.table)}
    console.finish(as_json, folder, numbers, show)


def _run_training(scenario: TrainingScenario, folder: Path, as_json: bool) -> None:
    """Simulate a training scenario, write its folder, and print the comparison."""
    from simulator.commands.report import write_results
    from simulator.commands.train import train
    from simulator.results.training import TrainingResults

    TrainingResults.check_writable(folder)
    with console.progress("deployments", "checking models, clusters and splits") as tick:
        results = train(scenario, progress=tick)
        tick("writing the report", 0, None)
        write_results(results, folder)
    notes = results.run["notes"]
    summary = console.rows_of(results.summary)
    numbers = {"verdict": results.verdict, "notes": notes, "summary": summary}
    console.finish(as_json, folder, numbers, lambda: console.print_findings(results), notes)


def report(
    folders: Annotated[
        list[Path], console.argument("Results folders; several are shown in one report.")
    ],
    out_file: Annotated[
        Path | None,
        console.option(
            "HTML file; by default report.html (of several: comparison.html) in the first folder.",
            "FILE",
            flag="--out",
        ),
    ] = None,
    as_json: console.AsJson = False,
) -> None:
    """Build the report again from results folders of moesim run, or from one of a sweep, of moesim
    execute or of moesim plan.
    """
    from simulator.commands.report import build_report

    made = build_report(folders, out_file)
    if as_json:
        console.emit({"report": str(made.file), "verdict": made.verdict})
    console.err.say(f"report: {made.file}")


def print_run(results: Results) -> None:
    """Print the verdict with its reasons, then the table of key metrics."""
    from simulator.results.run_bands_text import NEAR_SATURATION

    console.print_verdict(results.verdict)
    lines = list(_comparison(results, console.out.width if console.out.is_terminal else 10_000))
    for line in lines:
        console.out.say(line)
    if any(_MARK in line.plain for line in lines):
        console.out.say(f"{_MARK.strip()} {NEAR_SATURATION}")
    for table in results.list_tables():
        console.out.print()
        console.print_table(table.rows)


def print_explanation(results: Results) -> None:
    """Print where the time of each deployment's tokens goes."""
    from simulator.results.explanation_text import (
        describe_limits,
        find_help,
        find_token,
        list_limits,
        list_pieces,
        read_explanation,
    )
    from simulator.results.verdict import short_names

    short = short_names(results)
    for name, explained in read_explanation(results.run).items():
        for waterfall in explained.waterfalls:
            console.out.print()
            console.out.say(console.fill(str(find_token(short[name], waterfall))), "bold")
            console.print_table(list_pieces(waterfall))
            console.out.print()
            console.print_table(list_limits(explained, waterfall))
            console.print_points(describe_limits(explained, waterfall))
        console.out.print()
        headline, *sentences = find_help(explained.changes)
        console.out.say(console.fill(str(headline)), "bold")
        console.print_points(sentences)


def _comparison(results: Results, width: int) -> Iterator[Text]:
    """Lay out the key metrics, a column for each deployment, the best in bold; as many columns side
    by side as fit in ``width``.
    """
    from simulator.results.metrics import KEY_METRICS, METRICS, heading_unit, metric, winners
    from simulator.results.run_bands_text import list_notes
    from simulator.results.run_sentences import is_scaled
    from simulator.results.verdict import short_names

    names = [textwrap.wrap(name, _LONGEST_NAME) for name in short_names(results).values()]
    currencies = [results.run["deployments"][name]["currency"] for name in results.deployments]
    rows: list[tuple[str, list[str], set[int]]] = [
        ("", list(lines), set()) for lines in zip_longest(*names, fillvalue="")
    ]
    noted = {(note.deployment, note.metric) for note in list_notes(results, "near_saturation")}
    is_any_scaled = any(map(is_scaled, results.run["deployments"].values()))
    for key in (
        *KEY_METRICS,
        "kv_used_max",
        "load_imbalance",
        "uniform_imbalance",
        "dropped_share",
        "availability",
        *(("gpus_held",) if is_any_scaled else ()),
    ):
        values = [float(value) for value in results.summary[key]]
        unit = heading_unit(key)
        cells = [
            f"{metric(key, value, currency)} {unit}".rstrip() + _MARK * ((name, key) in noted)
            for name, value, currency in zip(results.deployments, values, currencies, strict=True)
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


def diff(
    first: Annotated[Path, console.argument("A results folder of a run, a training or a plan.")],
    second: Annotated[Path, console.argument("Another one.")],
    as_json: console.AsJson = False,
) -> None:
    """Compare two results folders of the same command: the metrics that differ, and what does of
    the keys of the scenarios or questions, the traffic, and the program (run.json: ...).

    Deployments are paired by name, and by their order where no name is in both (A / B).
    """
    from simulator.commands.folders import diff as find_differences

    metrics, keys = find_differences(first, second)
    if as_json:
        rows = metrics.rename_axis(["deployment", "metric"]).reset_index()
        console.emit({"metrics": console.rows_of(rows), "keys": keys})
        return
    for name, rows in metrics.groupby(level=0, sort=False):
        lines = [[key, *(f"{value:.6g}" for value in row)] for (_, key), *row in rows.itertuples()]
        console.print_table([[str(name), str(first), str(second), "change", "ratio"], *lines])
        console.out.print()
    if keys:
        lines = [[key, *map(console.plain, pair)] for key, pair in keys.items()]
        console.print_table([["key", str(first), str(second)], *lines])
    if metrics.empty and not keys:
        console.out.say("No metric and no key differs.")
