"""``moesim trace record``: make recordings of expert choices, a command for each source of them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.base.errors import UserError
from simulator.base.partial import whole_file
from simulator.cli import console

if TYPE_CHECKING:
    from simulator.commands.record_training import TrainedRecording

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Record which experts a model chooses, as a file that routing = { kind = 'replay' } reads."
    ),
)

Target = Annotated[Path, console.argument("Recording to write.", "OUT.npz")]
Text = Annotated[
    Path | None,
    console.option(
        "Text files, a subfolder a domain; by default Python's standard library.",
        "FOLDER",
        flag="--text",
    ),
]
Tokens = Annotated[int, console.option("Tokens to record.", "N", flag="--tokens")]
_BESIDE = {"curve": ".csv", "page": ".html", "model": ".toml"}
"""Suffixes of the files written beside the recording."""


@app.command()
def train(
    target: Target,
    text: Text = None,
    minutes: Annotated[
        float | None, console.option("How long the run may take; by default 5.", "M")
    ] = None,
    steps: Annotated[
        int | None,
        console.option("Steps to train, whatever they take; repeats a run.", "N"),
    ] = None,
    tokens: Tokens = 8192,
    weights: Annotated[
        Path | None,
        console.option("Also write the mixture's weights (.safetensors).", "FILE"),
    ] = None,
    seed: console.Seed = None,
    seeds: Annotated[
        int,
        console.option("Trainings of each model, from --seed on; for the bands.", "N"),
    ] = 3,
    as_json: console.AsJson = False,
) -> None:
    """Train a small mixture of experts beside dense twins, record its choices, and say which
    learned faster: a tuned learning rate for each, and bands over several seeds.
    """
    if minutes is not None and steps is not None:
        raise UserError("--minutes and --steps: give one of them")
    _check_suffix(target, ".npz")
    files = {
        "recording": target,
        **{what: target.with_suffix(suffix) for what, suffix in _BESIDE.items()},
    }
    if weights is not None:
        _check_suffix(weights, ".safetensors")
        files["weights"] = weights
    from simulator.commands.record_training import train_and_record, write_training

    with ExitStack() as stack:
        # All files or none: each is renamed to its name when all are written.
        partial = {what: stack.enter_context(whole_file(file)) for what, file in files.items()}
        with console.progress("steps", "reading text") as tick:
            first = seed or 0
            made = train_and_record(
                text,
                5.0 if minutes is None else minutes,
                steps,
                tokens,
                range(first, first + seeds),
                tick,
            )
            tick("recording, and writing the page", 0, None)
            write_training(made, target, partial)
    if as_json:
        console.emit({"files": {what: str(file) for what, file in files.items()}, **made.summary()})
    else:
        _print_training(made)
    for file in files.values():
        console.err.say(f"wrote {file}")


@app.command()
def transformers(
    model: Annotated[
        str, console.argument("A model's folder, or its name on the Hugging Face Hub.")
    ],
    target: Target,
    text: Text = None,
    tokens: Tokens = 8192,
    seed: console.Seed = None,
    as_json: console.AsJson = False,
) -> None:
    """Record the choices of a Hugging Face mixture of experts (Mixtral, OLMoE, Qwen-MoE, DeepSeek
    ...).
    """
    _check_suffix(target, ".npz")
    from simulator.commands.record_trace import describe, record_transformers
    from simulator.runtime.recording.trace_file import write_recording

    with whole_file(target) as partial:
        with console.progress("tokens", "reading text") as tick:
            recording = record_transformers(model, text, tokens, seed or 0, tick)
        write_recording(recording, partial)
    _print_recording(target, describe(recording), as_json)


@app.command()
def runtime(
    scenario: console.ScenarioFile,
    target: Target,
    deployment: Annotated[
        str | None, console.option("By default the first one with experts.", "NAME")
    ] = None,
    text: Text = None,
    tokens: Tokens = 8192,
    simulated_nodes: console.SimulatedNodes = None,
    address: console.Address = None,
    seed: console.Seed = None,
    overrides: console.Set = None,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Record what the routers of a deployment choose while its shards run for real."""
    _check_suffix(target, ".npz")
    from simulator.commands.record_trace import describe, record_runtime
    from simulator.runtime.recording.trace_file import write_recording
    from simulator.scenario.jobs import load_scenario

    loaded = load_scenario(scenario, overrides or [], seed)
    with whole_file(target) as partial:
        with console.progress("steps", "checking the scenario") as tick:
            recording = record_runtime(
                loaded, deployment, text, tokens, simulated_nodes, address, tick
            )
        write_recording(recording, partial)
    _print_recording(target, describe(recording), as_json)


def _print_recording(target: Path, found: dict[str, object], as_json: bool) -> None:
    if as_json:
        console.emit({"files": {"recording": str(target)}, **found})
    else:
        console.print_rows(
            {key.replace("_", " "): console.plain(value) for key, value in found.items()}
        )
    console.err.say(f"wrote {target}")


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise UserError(f"{path}: must end in {suffix}")


def _print_training(made: TrainedRecording) -> None:
    """Print the headline, the table, and further findings."""
    console.out.print(made.headline, style="bold")
    console.out.print()
    head = (
        "",
        "parameters",
        "active",
        "learning rate",
        "a step",
        "loss, same tokens",
        "loss, same time",
        "above the mixture",
        "at the mixture's loss after",
    )
    cells = [head]
    for row in made.outcomes:
        reached = (
            f"in {row.num_reached} of {row.num_seeds} seeds"
            if row.seconds_to_moe_loss is None
            else f"{row.seconds_to_moe_loss:.1f} s"
        )
        counts = (
            f"{row.num_parameters:,}",
            f"{row.num_active_parameters:,}",
            f"{row.learning_rate:g}",
            f"{1e3 * row.step_s:.0f} ms",
        )
        losses = (
            f"{row.held_out_loss:.3f} in {row.seconds:.1f} s",
            f"{row.same_time_loss:.3f} with {row.same_time_tokens:,}",
            row.same_time_above_moe.text,
        )
        cells.append((row.model, *counts, *losses, reached))
    console.print_table(cells)
    console.out.print()
    for said in made.findings:
        console.out.print(said)
