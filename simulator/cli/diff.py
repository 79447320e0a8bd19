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
