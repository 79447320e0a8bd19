"""``moesim trace cache``: hit rates of caches of experts, from a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from simulator.cli import console
from simulator.cli.console import AllowCode, AsJson


def cache(
    recording: Annotated[
        Path, typer.Argument(help="A recording of the experts that tokens chose.")
    ],
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="The model that it was recorded of.")
    ],
    slots: Annotated[
        list[int] | None,
        typer.Option(
            "--slots",
            metavar="N",
            min=1,
            help="Experts of each layer in the cache; by default a quarter, a half and three "
            "quarters of them. May be given several times.",
        ),
    ] = None,
    streams: Annotated[
        int, typer.Option("--streams", metavar="N", min=1, help="Sequences served at once.")
    ] = 1,
    caching: Annotated[
        list[str] | None,
        typer.Option("--caching", metavar="KIND", help="Caching policy; by default each in turn."),
    ] = None,
    prefetching: Annotated[
        str, typer.Option("--prefetching", metavar="KIND", help="Prefetching policy.")
    ] = "none",
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Replay a recording through caches that hold a few experts of each layer, and say what share
    of the experts was found there. Policies learn from its first half, and its second is replayed.
    """
    from simulator.commands.cache_trace import replay_recording

    tables = [{"kind": kind} for kind in caching or ()]
    found = replay_recording(recording, model, slots or (), streams, tables, {"kind": prefetching})
    if as_json:
        console.emit([row._asdict() for row in found])
        return
    table = Table("caching", "slots a layer", "hits", "fetched ahead", "uploads a layer and step")
    for row in found:
        rates = (f"{row.hit_rate:.1%}", f"{row.ahead_rate:.1%}", f"{row.uploads:.2f}")
        table.add_row(row.caching, f"{row.slots:,}", *rates)
    console.out.print(table)
