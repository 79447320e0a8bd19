"""``moesim execute``: the plan for real, serving or training, beside its prediction."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from simulator.cli import console

if TYPE_CHECKING:
    from simulator.base.findings import Finding
    from simulator.results.executed import Executed
    from simulator.results.training import Trained
    from simulator.scenario.scenario import Scenario, TrainingScenario


def execute(
    scenario: console.ScenarioFile,
    out_folder: console.Out = None,
    backend: Annotated[
        str,
        console.option(
            "ray (actors, over nodes and with faults) or in_process (threads, without Ray).", "NAME"
        ),
    ] = "ray",
    simulated_nodes: console.SimulatedNodes = None,
    address: console.Address = None,
    deployments: Annotated[
        list[str] | None,
        console.option(
            "Run only this one; may be given several times.", "NAME", flag="--deployment"
        ),
    ] = None,
    seed: console.Seed = None,
    overrides: console.Set = None,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Run every deployment of a scenario for real, on PyTorch shards in Ray actors or in threads of
    this process, beside the simulator's prediction. Of a training scenario, steps are trained, with
    gradients that are compared with one process's.
    """
    from simulator.scenario.jobs import SCENARIOS, load_job
    from simulator.scenario.scenario import Scenario

    job = load_job(scenario, SCENARIOS, overrides or [], seed)
    folder = console.find_folder(out_folder, job.where, "_executed")
    options = {
        "backend": backend,
        "simulated_nodes": simulated_nodes,
        "address": address,
        "names": deployments or (),
    }
    if isinstance(job, Scenario):
        _execute_serving(job, folder, as_json, **options)
    else:
        _execute_training(job, folder, as_json, **options)


def _execute_serving(scenario: Scenario, folder: Path, as_json: bool, **options: Any) -> None:
    """Run the scenario's deployments for real, write a folder, and print the comparison."""
    from simulator.commands.execute import execute

    with console.progress(unit="steps", waiting="checking models and clusters") as tick:
        executed = execute(scenario, folder=folder, progress=tick, **options)

    changes = {
        name: {key: facts[key] for key in ("changes", "rebalances", "caches")}
        for name, facts in executed.run["deployments"].items()
    }
    numbers = {
        "verdict": executed.verdict,
        "summary": console.rows_of(executed.summary),
        "faults": console.rows_of(executed.faults),
        "deployments": changes,
    }

    def show() -> None:
        print_executed(executed)
        console.say_notes(_list_notes(executed))

    console.finish(as_json, folder, numbers, show)


def print_executed(executed: Executed) -> None:
    """The verdict with its reasons, then tokens a second and phases, measured beside predicted."""
    from simulator.results.executed import KINDS, kinds

    console.print_verdict(executed.verdict)
    for kind in kinds(executed):
        own = executed.summary[executed.summary["kind"] == kind]
        rows: list[tuple[str, ...]] = [
            ("", "tokens/s", "predicted", "step", "predicted", "error", "against one process")
        ]
        rows += [
            (
                entry["deployment"],
                f"{entry['tokens_per_s']:,.0f}",
                f"{entry['predicted_tokens_per_s']:,.0f}",
                f"{entry['step_s'] * 1e3:.1f} ms",
                f"{entry['predicted_step_s'] * 1e3:.1f} ms",
                _band(entry["error"], entry["idle_error"]),
                f"{entry['largest_difference']:.0e}",
            )
            for entry in own.to_dict("records")
        ]
        console.out.print(f"{KINDS[kind]}:", style="bold")
        console.print_table(rows)
        console.out.print()
    console.out.print("Where a step's time goes, ms measured / predicted:", style="bold")
    console.print_table(_phase_rows(executed))
    for fault in executed.faults.to_dict("records"):
        console.out.print(
            f"step {fault['step']} of {fault['deployment']}: {fault['what']}; ready again after "
            f"{fault['recovery_s']:.1f} s, which the step's time leaves out"
        )


def _list_notes(executed: Executed) -> Iterator[str]:
    """Notes on what the prediction leaves out, or rests on."""
    from simulator.results.executed import find_load, find_pace

    yield from (_begin_small(one) for one in (find_load(executed), find_pace(executed)) if one)
    transport = executed.run["scenario"]["execution"]["transport"]["kind"]
    if transport != "process_group":
        yield (
            f"exchanges were timed between process groups, not through '{transport}', "
            "so their prediction is too short"
        )
    known = executed.run["calibration"]
    if known["machine"] != executed.run["machine"]:
        rests_on = (
            f"times of another machine ({known['machine']})"
            if known["machine"]
            else f"{known['title']}, not on times of this machine"
        )
        yield (
            f"the prediction rests on {rests_on}; moesim calibrate cpu measures this one "
            f"({executed.run['machine']}), for deployments on a cluster 'this-machine-<ranks>'"
        )
    else:
        whose = "the shipped" if known["is_shipped"] else "your"
        spread = known["spread"]
        noise = "" if spread is None else f", whose times differed by {spread:.0%} between rounds"
        yield f"the prediction rests on {whose} calibration{noise}: {known['source']}"


def _begin_small(finding: Finding) -> str:
    """Write a sentence as a note."""
    text = str(finding)
    return f"{text[0].lower()}{text[1:]}"


def _band(error: float, idle_error: float) -> str:
    """The error of a prediction, and up to where it would be on an idle machine.

    >>> _band(-0.8, -0.2), _band(-0.8, -0.8), _band(0.1, float("nan"))
    ('-80% to -20%', '-80%', '+10%')
    """
    low, high = f"{error:+.0%}", f"{idle_error:+.0%}"
    return low if idle_error != idle_error or low == high else f"{low} to {high}"


def _phase_rows(executed: Executed) -> list[tuple[str, ...]]:
    from simulator.results.executed import KINDS, SOURCES, kinds, phase_medians_s
    from simulator.results.phases import STEP_PHASES

    medians_s = {
        f"{name}, {KINDS[kind]}": [phase_medians_s(executed, name, kind, one) for one in SOURCES]
        for name in executed.deployments
        for kind in kinds(executed)
    }
    every = [one for both in medians_s.values() for one in both]
    used = [phase for phase in STEP_PHASES if any(one.get(phase) for one in every)]
    rows = [("", *used)]
    for title, (measured, predicted) in medians_s.items():
        if measured and predicted:
            cells = (f"{1e3 * measured[one]:.1f} / {1e3 * predicted[one]:.1f}" for one in used)
            rows.append((title, *cells))
    return rows


def _execute_training(
    scenario: TrainingScenario, folder: Path, as_json: bool, **options: Any
) -> None:
    """Train the scenario's deployments for some steps, write a folder, and print the comparison."""
    from simulator.commands.execute_training import execute_training

    with console.progress("steps", "checking models, clusters and splits") as tick:
        trained = execute_training(scenario, folder=folder, progress=tick, **options)

    numbers = {
        "findings": trained.list_findings(),
        "deployments": trained.run["deployments"],
        "steps": console.rows_of(trained.steps),
    }
    notes, show = _list_training_notes(trained), partial(_print_trained, trained)
    console.finish(as_json, folder, numbers, show, notes, "steps.csv")


def _print_trained(trained: Trained) -> None:
    """Print the findings, and where a step's time goes, measured beside simulated."""
    from simulator.base.formats import seconds
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


def _list_training_notes(trained: Trained) -> list[str]:
    """Notes on what the comparison rests on."""
    from simulator.results.executed import BUSY, find_pace

    known, pace = trained.run["calibration"], find_pace(trained)
    notes = [] if pace is None else [_begin_small(pace)]
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
