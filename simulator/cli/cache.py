"""``moesim cache``: what is kept between runs, and clearing it."""

from __future__ import annotations

from collections.abc import Callable

import typer

from simulator.base import caches
from simulator.base.caches import Kept
from simulator.base.errors import UserError
from simulator.base.text import first_line
from simulator.cli import console

app = typer.Typer(
    no_args_is_help=True,
    help="Say what is kept between runs, such as compiled functions, and clear it.",
)


@app.command()
def info(as_json: console.AsJson = False) -> None:
    """Say what is kept, where, and how much it is."""
    _show(caches.measure_caches, as_json)


@app.command()
def clear(as_json: console.AsJson = False) -> None:
    """Remove all that is kept; the next run compiles anew, the next search simulates anew."""
    _show(caches.clear_caches, as_json)


def _show(find: Callable[[], dict[str, Kept]], as_json: bool) -> None:
    try:
        kept = find()
    except OSError as error:
        raise UserError(f"caches cannot be read or cleared: {first_line(error)}") from error
    if as_json:
        console.emit(
            {
                name: {"folder": str(one.folder), "files": one.num_files, "bytes": one.num_bytes}
                for name, one in kept.items()
            }
        )
        return
    console.print_rows(
        {
            name: f"{one.num_files:,} files, {one.num_bytes / 1e6:,.1f} MB in {one.folder}"
            for name, one in kept.items()
        }
    )
