"""``moesim claims``: the verdict on each claim, and the folder with the report."""

from __future__ import annotations

from typing import Annotated

import typer

from simulator.cli import console


def register(commands: typer.Typer) -> None:
    """Add the command to those of ``moesim``."""
    commands.command()(claims)


def claims(
    names: Annotated[
        list[str] | None,
        console.argument(
            "Claims to try: names of shipped ones or TOML files; all that ship by default."
        ),
    ] = None,
    out_folder: console.Out = None,
    seed: console.Seed = None,
    seeds: Annotated[
        int,
        console.option("Seeds that bands reach over.", "N", min=1),
    ] = 3,
    real: Annotated[
        bool,
        console.option(
            "Measure the claims on this machine as well: small models are trained and shards "
            "run for real. It says first how long that takes, and keeps what it measured.",
            flag="--real",
        ),
    ] = False,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Try what people say of mixtures of experts (faster to train, faster to serve, less compute
    and storage, on your device) under many conditions, and say which holds where.
    """
    from simulator.commands.report import write_results
    from simulator.lab.commands.claims import ClaimMeasurements, try_claims
    from simulator.lab.results.claims import ClaimsResults
    from simulator.results.results_folder import make_verdict

    folder = console.find_folder(out_folder, "claims")
    ClaimsResults.check_writable(folder)
    measurements = ClaimMeasurements(names or ()) if real else None
    try:
        if measurements is not None:
            console.err.say(measurements.describe())
            with console.progress("steps", "starting") as tick:
                measurements.measure(tick)
        with console.progress("rounds", "reading the claims") as tick:
            results = try_claims(
                names or (), seed=1 if seed is None else seed, num_seeds=seeds, progress=tick
            )
            tick("writing the report", 0, None)
            write_results(results, folder)
    except KeyboardInterrupt:
        if measurements is None:
            raise
        raise console.StoppedError(measurements.tell_kept()) from None

    def show() -> None:
        console.print_verdict(results.verdict)
        for answer in results.answers:
            console.print_verdict(make_verdict([answer.statement, *answer.sentences]))
            if measured := answer.measured:
                made = f"Measured here ({measured.made})"
                console.print_verdict(make_verdict([made, *measured.sentences]))

    console.finish(as_json, folder, results.run, show)
