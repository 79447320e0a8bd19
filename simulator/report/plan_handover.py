"""Scenario files and serving commands of a plan on its page, with what flags do not express."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from simulator.results.answer.handover import Handover, ScenarioFile, ServingCommand

_WIDEST = 76
"""Letters of a command's line; a longer one goes on below."""


class Command(NamedTuple):
    """A command that can be copied."""

    title: str
    text: str


class Alike(NamedTuple):
    """Commands that differ in numbers only: the servers of one kind."""

    first: Command
    others: list[Command]
    summary: str
    """Names of the others, which are folded away."""


class Servers(NamedTuple):
    """Commands that start the servers of a deployment."""

    deployment: str
    notes: list[str]
    """Notes on what flags do not express."""
    sources: list[str]
    """Releases and pages that flags were read from."""
    commands: list[Alike]


class HandoverView(NamedTuple):
    """Scenario files and serving commands of a plan."""

    scenarios: Sequence[ScenarioFile]
    servers: list[Servers]


def describe_handover(found: Handover | None) -> HandoverView | None:
    """The scenario files, and by deployment the commands that start its servers; None without
    either.
    """
    if found is None or not (found.scenarios or found.commands):
        return None
    by_deployment: dict[str, list[ServingCommand]] = {}
    for row in found.commands:
        by_deployment.setdefault(row.deployment, []).append(row)
    servers = [_view_servers(name, rows) for name, rows in by_deployment.items()]
    return HandoverView(found.scenarios, servers)


def _view_servers(deployment: str, rows: list[ServingCommand]) -> Servers:
    alike = groupby((row for row in rows if row.command), _hide_numbers)
    return Servers(
        deployment,
        list(dict.fromkeys(note for row in rows for note in row.not_expressed)),
        list(dict.fromkeys(row.flags_read for row in rows if row.flags_read)),
        [_view_alike(deployment, *run) for _, run in alike],
    )


def _hide_numbers(row: ServingCommand) -> str:
    return re.sub(r"[0-9]+(,[0-9]+)*", "0", row.command)


def _view_alike(deployment: str, *rows: ServingCommand) -> Alike:
    names = [row.name.removeprefix(f"{deployment}: ") for row in rows]
    commands = [
        Command(f"{name[:1].upper()}{name[1:]}", by_flag(row.command))
        for name, row in zip(names, rows, strict=True)
    ]
    others = names[1:]
    shown = f"{', '.join(others[:2])}{', ...' if len(others) > 2 else ''}"
    return Alike(commands[0], commands[1:], f"{len(others)} more like it: {shown}")


def by_flag(command: str) -> str:
    r"""A command with each flag of a long line on a line of its own, which a shell reads as the
    same command.

    Quoted text and here-documents stay as they are.

    >>> parallel = "--tensor-parallel-size 8 --pipeline-parallel-size 2"
    >>> print(by_flag(f"serve model --port 8000 --kv '{{a --b: 1}}' {parallel}"))
    serve model \
      --port 8000 \
      --kv '{a --b: 1}' \
      --tensor-parallel-size 8 \
      --pipeline-parallel-size 2
    """
    lines, end = [], None
    for line in command.split("\n"):
        if end is not None:
            end = None if line.strip() == end else end
            lines.append(line)
            continue
        opened = re.search(r"<<-?\s*['\"]?(\w+)", line)
        end = opened[1] if opened else None
        lines.append(
            line
            if opened or len(line) <= _WIDEST or line.endswith("\\")
            else " \\\n  ".join(_flags(line))
        )
    return "\n".join(lines)


def _flags(line: str) -> list[str]:
    """A line cut before each flag that stands outside quotes."""
    parts, quote = [""], ""
    for place, letter in enumerate(line):
        if not quote and line.startswith(" --", place):
            parts.append("")
            continue
        if letter == quote:
            quote = ""
        elif not quote and letter in "'\"":
            quote = letter
        parts[-1] += letter
    return parts
