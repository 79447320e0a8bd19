"""``moesim list``, ``new``, ``check`` and ``schema``: what there is, a file to begin with, and
whether it is right; they run nothing.
"""

from __future__ import annotations

import json
from typing import Annotated

from simulator.base.text import one_line
from simulator.cli import console


def list_(
    family: Annotated[
        str | None,
        console.argument("A family, such as models, clusters or routing; absent = all."),
    ] = None,
    as_json: console.AsJson = False,
    markdown: Annotated[bool, console.option("Print Markdown tables.", flag="--markdown")] = False,
) -> None:
    """List what there is: scenarios, plans, workloads, models, clusters, accelerators and every
    kind of policy.
    """
    from simulator.commands.catalogue import list_kinds

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
