"""``moesim run`` of a training scenario: the comparison, and the folder with its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simulator.base.errors import UserError
from simulator.cli import console


def run_training(
    scenario: str, out_folder: Path | None, seed: int | None, overrides: list[str], as_json: bool
) -> None:
    """Simulate a training scenario, write its folder, and print the comparison."""
    from simulator.commands.report import write_results
    from simulator.commands.train import train
    from simulator.results.training import TrainingResults
    from simulator.scenario.training import load_training

    loaded = load_training(scenario, overrides, seed)
    folder = out_folder or Path("reports/out") / Path(loaded.where).stem
    TrainingResults.check_writable(folder)
    with console.progress("deployments", "checking models, clusters and splits") as tick:
        results = train(loaded, progress=tick)
        tick("writing the report", 0, None)
        write_results(results, folder)
    if as_json:
        summary = json.loads(results.summary.to_json(orient="records", double_precision=15))
        verdict, notes = results.run["verdict"], results.run["notes"]
        console.emit(
            {"folder": str(folder), "verdict": verdict, "notes": notes, "summary": summary}
        )
    else:
        print_training(results)
    console.say_notes(results.run["notes"])
    console.err.say(f"report: {folder / 'report.html'}")


def print_training(results: Any) -> None:
    """Print the verdict, and a row for each metric."""
    from simulator.results.training import METRICS, write_metric

    verdict, facts = results.run["verdict"], results.run["deployments"]
    console.print_verdict(verdict["headline"], verdict["reasons"])
    rows = [["", *results.deployments]]
    for name, described in METRICS.items():
        values = results.summary[name].astype(float).to_list()
        if any(value == value for value in values):
            cells = [
                write_metric(name, value, str(facts[one]["currency"]))
                for value, one in zip(values, results.deployments, strict=True)
            ]
            rows.append([described.label, *cells])
    console.print_table(rows)


def refuse_serving_options(**given: bool) -> None:
    """Refuse options that a training has no use for.

    Raises:
        UserError: naming the first one.
    """
    for option, is_given in given.items():
        if is_given:
            raise UserError(
                f"--{option}: a training scenario has one fidelity and no requests; leave it out"
            )
