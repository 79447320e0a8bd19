"""``moesim plan``: the cheapest deployment that meets the targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.cli import console
from simulator.cli.console import AsJson, Out, Seed, Set


def plan(
    question: Annotated[str, typer.Argument(help="A plan's TOML file, or the name of a shipped one.")],
    out_folder: Out = None,
    seed: Seed = None,
    overrides: Set = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where finished simulations are kept; by default in the user's cache folder.")
    ] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes; by default one a core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest deployments, MoE or dense, that meet latency targets for a workload."""
    from simulator.planner.answer import summary
    from simulator.planner.search import search
    from simulator.planner.store import Store, default_folder
    from simulator.question import load_question

    loaded, path = load_question(question, overrides or [], seed)
    with console.progress("deployments", "reading models, clusters and requests") as tick:
        found = search(loaded, path.resolve().parent, Store(cache or default_folder()), tick, workers)
        answer = summary(found)
    if as_json:
        console.emit(answer)
        return
    console.out.print(answer)
