"""``moesim execute`` of a training scenario: what was trained, beside the simulated step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simulator.cli import console


def execute_training(
    scenario: str,
    out_folder: Path | None,
    seed: int | None,
    overrides: list[str],
    as_json: bool,
    **options: Any,
) -> None:
    """Train the scenario's deployments for some steps, write a folder, and print the comparison.

    Args:
        options: backend, nodes and deployments, as the command takes them.
    """
    from simulator.commands.execute_training import execute_training as train
    from simulator.scenario.training import load_training

    loaded = load_training(scenario, overrides, seed)
    folder = out_folder or Path("reports/out") / f"{Path(loaded.where).stem}_executed"
    with console.progress("steps", "checking models, clusters and splits") as tick:
        trained = train(loaded, folder=folder, progress=tick, **options)
    if as_json:
        console.emit(
            {
                "folder": str(folder),
                "findings": trained.list_findings(),
                "deployments": trained.run["deployments"],
                "steps": json.loads(trained.steps.to_json(orient="records", double_precision=15)),
            }
        )
    else:
        print_trained(trained)
    console.say_notes(_list_notes(trained))
    console.err.say(f"steps: {folder / 'steps.csv'}")


def print_trained(trained: Any) -> None:
    """Print the findings, and where a step's time goes, measured beside simulated."""
    from simulator.results.formats import seconds
    from simulator.results.training import STEP_PARTS

    for finding in trained.list_findings():
        console.out.say(console.fill(finding), "bold")
    console.out.print()
    rows = [["measured / simulated", *trained.deployments]]
    for part in ("step_s", *STEP_PARTS):
        cells = []
        for name in trained.deployments:
            measured, simulated = (
                float(trained.find_steps(name, source)[part].median())
                for source in ("measured", "simulated")
            )
            cells.append(f"{seconds(measured)} / {seconds(simulated)}")
        rows.append([part.removesuffix("_s"), *cells])
    console.print_table(rows)


def _list_notes(trained: Any) -> list[str]:
    """Notes on what the comparison rests on."""
    from simulator.results.executed import BUSY, describe_pace

    known, notes = trained.run["calibration"], []
    if pace := describe_pace(trained.run["deployments"]):
        notes.append(f"{pace[0].lower()}{pace[1:]}")
    if known["machine"] != trained.run["machine"]:
        notes.append(
            f"the simulated step rests on {known['title']}, not on times of this machine "
            f"({trained.run['machine']}); moesim calibrate cpu measures it, for deployments on "
            "cluster 'this-machine'"
        )
    share = max(facts["others_share"] for facts in trained.run["deployments"].values())
    if share >= BUSY:
        notes.append(
            f"other programs took {share:.0%} of the cores meanwhile, so steps took longer than on "
            "an idle machine"
        )
    return notes
