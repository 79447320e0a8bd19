"""``moesim execute``: the plan for real, serving or training, beside its prediction."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from simulator.cli import console

if TYPE_CHECKING:
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

    def list_numbers() -> dict[str, Any]:
        changes = {
            name: {key: facts[key] for key in ("changes", "rebalances", "caches")}
            for name, facts in executed.run["deployments"].items()
        }
        return {
            "verdict": executed.verdict,
            "summary": console.rows_of(executed.summary),
            "faults": console.rows_of(executed.faults),
            "deployments": changes,
        }

    def show() -> None:
        print_executed(executed)
        console.say_notes(_list_notes(executed))

    console.finish(as_json, folder, list_numbers, show)


def print_executed(executed: Any) -> None:
    """The verdict with its reasons, then tokens a second and phases, measured beside predicted."""
    from simulator.results.executed import KINDS

    console.print_verdict(**executed.verdict)
    for kind in dict.fromkeys(executed.summary["kind"]):
        own = executed.summary[executed.summary["kind"] == kind]
        rows: list[tuple[str, ...]] = [
            ("", "tokens/s", "predicted", "step", "predicted", "error", "against one process")
        ]
        rows += [
            (
                entry.deployment,
                f"{entry.tokens_per_s:,.0f}",
                f"{entry.predicted_tokens_per_s:,.0f}",
                f"{entry.step_s * 1e3:.1f} ms",
                f"{entry.predicted_step_s * 1e3:.1f} ms",
                _band(entry.error, entry.idle_error),
                f"{entry.largest_difference:.0e}",
            )
            for entry in own.itertuples()
        ]
        console.out.print(f"{KINDS[kind]}:", style="bold")
        console.print_table(rows)
        console.out.print()
    console.out.print("Where a step's time goes, ms measured / predicted:", style="bold")
    console.print_table(_phase_rows(executed))
    for fault in executed.faults.itertuples():
        console.out.print(
            f"step {fault.step} of {fault.deployment}: {fault.what}; "
            f"ready again after {fault.recovery_s:.1f} s, which the step's time leaves out"
        )


def _list_notes(executed: Any) -> Iterator[str]:
    """Notes on what the prediction leaves out, or rests on."""
    from simulator.results.executed import describe_load, describe_pace

    for said in (describe_load(executed), describe_pace(executed.run["deployments"])):
        if said:
            yield f"{said[0].lower()}{said[1:]}"
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


def _band(error: float, idle_error: float) -> str:
    """The error of a prediction, and up to where it would be on an idle machine.

    >>> _band(-0.8, -0.2), _band(-0.8, -0.8), _band(0.1, float("nan"))
    ('-80% to -20%', '-80%', '+10%')
    """
    low, high = f"{error:+.0%}", f"{idle_error:+.0%}"
    return low if idle_error != idle_error or low == high else f"{low} to {high}"


def _phase_rows(executed: Any) -> list[tuple[str, ...]]:
    from simulator.results.executed import KINDS, SOURCES
    from simulator.results.phases import STEP_PHASES

    columns = [f"{phase}_s" for phase in STEP_PHASES]
    median = executed.steps.groupby(["deployment", "kind", "source"], sort=False)[columns].median()
    used = [column for column in columns if median[column].max() > 0]
    rows: list[tuple[str, ...]] = [("", *(column.removesuffix("_s") for column in used))]
    for deployment in executed.deployments:
        for kind in dict.fromkeys(executed.steps["kind"]):
            measured, predicted = (median.loc[(deployment, kind, source)] for source in SOURCES)
            cells = (
                f"{measured[column] * 1e3:.1f} / {predicted[column] * 1e3:.1f}" for column in used
            )
            rows.append((f"{deployment}, {KINDS[kind]}", *cells))
    return rows


def _execute_training(
    scenario: TrainingScenario, folder: Path, as_json: bool, **options: Any
) -> None:
    """Train the scenario's deployments for some steps, write a folder, and print the comparison."""
    from simulator.commands.execute_training import execute_training

    with console.progress("steps", "checking models, clusters and splits") as tick:
        trained = execute_training(scenario, folder=folder, progress=tick, **options)

    def list_numbers() -> dict[str, Any]:
        return {
            "findings": trained.list_findings(),
            "deployments": trained.run["deployments"],
            "steps": console.rows_of(trained.steps),
        }

    notes = _list_training_notes(trained)
    show = partial(_print_trained, trained)
    console.finish(as_json, folder, list_numbers, show, notes, "steps.csv")


def _print_trained(trained: Any) -> None:
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


def _list_training_notes(trained: Any) -> list[str]:
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
