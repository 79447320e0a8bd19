"""``moesim list``, ``new``, ``check``, ``schema`` and ``cache``: what there is, a file to begin
with, whether it is right, and what is kept; they run nothing.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from simulator.base import caches
from simulator.base.caches import Kept
from simulator.base.errors import UserError
from simulator.base.reading import read_text
from simulator.base.text import first_line, one_line
from simulator.cli import console


def list_(
    family: Annotated[
        str | None,
        console.argument("A family, such as models, clusters or routing; absent = all."),
    ] = None,
    name: Annotated[
        str | None, console.argument("One of the family: its keys, or its file.")
    ] = None,
    as_json: console.AsJson = False,
    markdown: Annotated[bool, console.option("Print Markdown tables.", flag="--markdown")] = False,
) -> None:
    """List what there is: scenarios, plans, workloads, models, clusters, accelerators and every
    kind of policy; of one its keys with their defaults, or the file that holds it.
    """
    from simulator.commands.catalogue import list_kinds

    if family is not None and name is not None:
        _show_entry(family, name, as_json)
        return
    found = list_kinds(family)
    if as_json:
        console.emit(found)
    elif markdown:
        for name, entries in found.items():
            console.out.say(f"### {name}\n\n| name | what it is |\n|---|---|")
            for entry, text in entries.items():
                console.out.say(f"| `{one_line(entry)}` | {one_line(text)} |")
            console.out.print()
    elif family is not None:
        console.print_rows(found[family])
    else:
        console.print_rows({name: ", ".join(entries) for name, entries in found.items()})
        console.err.print("moesim list FAMILY says what each is", style="dim")


def _show_entry(family: str, name: str, as_json: bool) -> None:
    from simulator.commands.schema import describe_entry

    found = describe_entry(family, name)
    if isinstance(found, Path):
        text = read_text(found)
        if as_json:
            console.emit({"file": str(found), "text": text})
        else:
            console.out.say(text.rstrip())
            console.err.print(str(found), style="dim")
    elif as_json:
        console.emit({**found._asdict(), "keys": [key._asdict() for key in found.keys]})
    else:
        console.out.say(found.description)
        rows = {}
        for key in found.keys:
            default = (
                "must be given"
                if key.default is None
                else key.default and f"by default {key.default}"
            )
            said = ", ".join(filter(None, (key.type, key.unit, key.bounds, default)))
            rows[key.path] = f"{said}. {key.description}"
        console.print_rows(rows)


def supports(
    model: Annotated[str, console.argument("A model, as moesim list models has it, or a file.")],
    machines: Annotated[str, console.argument("Kind of machines, such as h100-sxm.")],
    engine: Annotated[str, console.argument("Engine, such as sglang@0.5.23.")] = "vllm",
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Say what figures of a model on machines with an engine rest on: what was measured or fitted,
    and what is assumed.
    """
    from simulator.commands.check import supports as find_support

    found = find_support(model, machines, engine)
    if as_json:
        console.emit(found._asdict())
        return
    console.out.say(found.deployment, "bold")
    for one in sorted(found.assumptions, key=lambda row: row["kind"]):
        source = textwrap.shorten(
            one["source"] or one["value"], 200, placeholder="\N{HORIZONTAL ELLIPSIS}"
        )
        console.out.say(console.fill(f"{one['what']}: {source}", f"{one['kind']:13}", " " * 13))
    console.say_notes(found.notes)


def check(
    file: Annotated[
        str,
        console.argument(
            "A scenario, plan, workload, model, law, claim, cluster, accelerator or "
            "calibration file."
        ),
    ],
    overrides: console.Set = None,
    allow_code: console.AllowCode = False,
    as_json: console.AsJson = False,
) -> None:
    """Say whether a file is right, down to every name in it and whether the models fit their GPUs;
    runs nothing.
    """
    from simulator.commands.check import check as check_file

    found = check_file(file, overrides or [])
    if as_json:
        console.emit(found._asdict())
    else:
        console.out.say(f"{found.file}: a valid {found.kind}{found.details}")
    console.say_notes(found.notes)


def new(
    kind: Annotated[
        str,
        console.argument(
            "scenario, plan, cluster or model; or a kind of policy, such as balancing."
        ),
    ],
    name: Annotated[str, console.argument("What to call it; the file is NAME.toml, or NAME.py.")],
) -> None:
    """Write a commented file to begin with, where its name is found; moesim check accepts it as it
    is. Of a policy, a working one with its test in my_package, and a scenario that runs it.
    """
    from simulator.commands.new import write_new

    path = write_new(kind, name)
    console.out.say(str(path))
    how = f"moesim check {path} says whether it is right"
    if path.suffix == ".py":
        how = f"pytest {path.with_name(f'test_{path.name}')} runs it"
    console.err.print(how, style="dim")


def schema(
    what: Annotated[
        str,
        console.argument(
            "scenario, training, plan, 'training plan', workload, model, law, claim, "
            "accelerator, cluster, engine, calibration, 'host calibration' or answer."
        ),
    ] = "scenario",
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from simulator.commands.schema import make_schema

    print(json.dumps(make_schema(what), indent=1))  # noqa: T201


# ``moesim cache``: what is kept between runs, and clearing it.


cache = typer.Typer(
    no_args_is_help=True,
    help="Say what is kept between runs, such as compiled functions, and clear it.",
)


@cache.command()
def info(as_json: console.AsJson = False) -> None:
    """Say what is kept, where, and how much it is."""
    _show(caches.measure_caches, as_json)


@cache.command()
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
