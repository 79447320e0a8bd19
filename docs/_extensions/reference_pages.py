"""The reference, written from the program before Sphinx reads it: keys, commands, metrics and
everything that ``moesim list`` lists.

A page is a function from the program to Markdown, so that none of it can be out of date.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "reference" / "generated"
"""Where pages are written; git ignores it."""


def escape(text: str) -> str:
    """A text as one cell of a table: reStructuredText's literals as Markdown's, on one line."""
    text = re.sub(r":[a-z:]+:`~?([^`]+)`", r"`\1`", text)
    text = text.replace("``", "`").replace("|", "\\|")
    return " ".join(text.split())


def tabulate(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(map(escape, line))} |" for line in lines) + "\n"


def describe_metrics() -> str:
    """Every column of ``summary.csv``."""
    from simulator.results.metrics import METRICS

    rows = (
        (f"`{name}`", one.label, one.unit or "-", one.definition, one.better or "-")
        for name, one in METRICS.items()
    )
    return (
        "# Metrics\n\nThe columns of `summary.csv`, in its order. Units are SI; what is undefined "
        "for a deployment is empty.\n\n"
        + tabulate(("column", "name", "unit", "definition", "better"), rows)
    )


def describe_tables() -> str:
    """Every column of a run's tables."""
    from simulator.results.folder import COLUMNS, describe_columns

    parts = [
        "# Tables of a run\n\nThe tables of a results folder, Parquet files or CSVs, and "
        'the frames of `Results.frame("requests")` and the others; `summary.csv` is in '
        "[metrics](metrics.md). Times are seconds of virtual time since the first arrival.\n"
    ]
    for name in list(COLUMNS)[1:]:
        rows = ((f"`{column}`", text) for column, text in describe_columns(name).items())
        parts.append(f"\n## `{name}`\n\n{tabulate(('column', 'what it is'), rows)}")
    return "".join(parts)


def describe_commands() -> str:
    """Every command of ``moesim`` with its arguments and options."""
    import typer.main

    from simulator.cli import app

    text = "# Command line\n\n`moesim COMMAND --help` says the same.\n"
    return text + "".join(_describe_command("moesim", typer.main.get_command(app)))


def _describe_command(path: str, command: Any) -> Iterable[str]:
    children: Mapping[str, Any] = getattr(command, "commands", {})
    if path != "moesim":
        yield f"\n{'#' * len(path.split())} `{path}`\n\n{_plain(command.help or '')}\n"
        rows = [_describe_parameter(one) for one in command.params if one.name != "help"]
        if rows:
            yield "\n" + tabulate(("argument or option", "what it is"), rows)
    for name, child in children.items():
        yield from _describe_command(f"{path} {name}", child)


def _describe_parameter(one: Any) -> tuple[str, str]:
    if one.param_type_name == "argument":
        name = (one.metavar or one.name).upper()
        return f"`{name}`" if one.required else f"`[{name}]`", one.help or ""
    names = ", ".join((*one.opts, *one.secondary_opts))
    takes = f" {one.metavar}" if one.metavar else ""
    return f"`{names}{takes}`", one.help or ""


def _plain(text: str) -> str:
    return "\n".join(line.strip() for line in text.replace("``", "`").splitlines())


def describe_catalogue() -> str:
    """Everything that has a name: models, machines, workloads, policies."""
    from simulator.commands.catalogue import list_kinds

    parts = ["# What ships\n\n`moesim list FAMILY` prints the same.\n"]
    for family, entries in list_kinds(None).items():
        rows = ((f"`{name}`", text) for name, text in entries.items())
        parts.append(f"\n## {family}\n\n{tabulate(('name', 'what it is'), rows)}")
    return "".join(parts)


def describe_files() -> dict[str, str]:
    """A page for each kind of file, and one for each family of policies: every key."""
    from simulator.commands.schema import describe_keys

    families = describe_keys()
    files = families.pop("files")
    pages = {f"files/{_slug(name)}": _describe_file(name, kind) for name, kind in files.items()}
    return pages | {
        f"policies/{_slug(family)}": _describe_family(family, kinds)
        for family, kinds in families.items()
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _describe_file(name: str, kind: Any) -> str:
    return (
        f"# {name.capitalize()}\n\n{_paragraphs(kind.description)}\n\n`moesim schema "
        f"{shlex.quote(name)}` prints the JSON Schema.\n\n{_tabulate_keys(kind.keys)}"
    )


def _describe_family(family: str, kinds: Mapping[str, Any]) -> str:
    parts = [f"# {family.replace('.', ' ').replace('_', ' ').capitalize()}\n"]
    for name, kind in kinds.items():
        parts.append(f"\n## `{name}`\n\n{_paragraphs(kind.description)}\n\n")
        parts.append(_tabulate_keys(kind.keys) if kind.keys else "It has no keys.\n")
    return "".join(parts)


def _paragraphs(text: str) -> str:
    return "\n\n".join(map(escape, text.split("\n\n"))).replace("\\|", "|")


def _tabulate_keys(keys: Iterable[Any]) -> str:
    rows = ((f"`{key.path}`", key.description or "-", _say_values(key)) for key in keys)
    return tabulate(("key", "what it is", "values"), rows)


def _say_values(key: Any) -> str:
    """Type, range with unit, default and alternatives of a key, and whether it is a label."""
    bounds = " ".join(filter(None, (key.bounds, key.unit)))
    within = key.within and f"in a table of `{key.within}`"
    label = "a label: no figure changes with it" if key.is_label else ""
    return "; ".join(filter(None, (key.type, bounds, _say_default(key.default), within, label)))


def _say_default(default: str | None) -> str:
    if default is None:
        return "**required**"
    return "" if default in ("absent", "") else f"default `{default}`"


PAGES = {
    "metrics": describe_metrics,
    "tables": describe_tables,
    "commands": describe_commands,
    "catalogue": describe_catalogue,
}
"""Generated pages by name."""


def write_pages(folder: Path = FOLDER) -> None:
    """Write every page whose text has changed."""
    texts = {name: describe() for name, describe in PAGES.items()} | describe_files()
    for stale in {*folder.rglob("*.md")} - {folder / f"{name}.md" for name in texts}:
        stale.unlink()
    for name, text in texts.items():
        path = folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def keep_colons(_: Any, what: str, *about: Any) -> None:
    """Keep napoleon from taking what stands before the first colon of an attribute for its type:
    behind an empty comment it looks for none.
    """
    if what in ("attribute", "property"):
        about[-1][:0] = ["..", ""]


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's entry."""
    app.connect("builder-inited", lambda _: write_pages())
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon's 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
