"""``moesim diff``: how two results folders differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from simulator.cli import console


def diff(
    first: Annotated[Path, console.argument("A results folder of a run, a training or a plan.")],
    second: Annotated[Path, console.argument("Another one.")],
    as_json: console.AsJson = False,
) -> None:
    """Compare two results folders: the metrics that differ, and the keys of the scenarios or
    questions that do.
    """
    from simulator.commands.folders import diff as find_differences

    found = find_differences(first, second)
    metrics = [one for one in found if one.deployment]
    keys = [one for one in found if not one.deployment]
    if as_json:
        numbers = [{**one._asdict(), "change": one.change, "ratio": one.ratio} for one in metrics]
        keyed = [{"key": one.name, "first": one.first, "second": one.second} for one in keys]
        console.emit({"metrics": numbers, "keys": keyed})
        return
    for name in dict.fromkeys(one.deployment for one in metrics):
        head = [name, str(first), str(second), "change", "ratio"]
        rows = [
            [
                one.name,
                *(f"{value:.6g}" for value in (one.first, one.second)),
                f"{one.change:+.4g}",
                "-" if one.ratio is None else f"{one.ratio:.4g}",
            ]
            for one in metrics
            if one.deployment == name
        ]
        console.print_table([head, *rows])
        console.out.print()
    if keys:
        shown = [[one.name, *map(console.plain, (one.first, one.second))] for one in keys]
        console.print_table([["key", str(first), str(second)], *shown])
    if not found:
        console.out.say("No metric and no key differs.")
