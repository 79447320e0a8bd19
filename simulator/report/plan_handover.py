"""Scenario files and serving commands of a plan on its page, with what flags do not express."""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

from simulator.results.answer.handover import Handover, ServingCommand

_WIDEST = 76
"""Letters of a command's line; a longer one goes on below."""
_FLAGS = re.compile(r"""(?:(?! --)(?:'[^']*(?:'|$)|"[^"]*(?:"|$)|.))+""")
"""Pieces of a line, cut before each flag that stands outside quotes."""


class Servers(NamedTuple):
    """Commands that start the servers of a deployment."""

    deployment: str
    notes: list[str]
    """Notes on what flags do not express."""
    sources: list[str]
    """Releases and pages that flags were read from."""
    commands: list[list[tuple[str, str]]]
    """Names and texts of commands, those together that differ in numbers only: the servers of one
    kind."""


def list_servers(found: Handover | None) -> list[Servers]:
    """The commands that start the servers of each deployment."""
    by_deployment: dict[str, list[ServingCommand]] = {}
    for row in () if found is None else found.commands:
        by_deployment.setdefault(row.deployment, []).append(row)
    return [
        Servers(
            deployment,
            list(dict.fromkeys(note for row in rows for note in row.not_expressed)),
            list(dict.fromkeys(row.flags_read for row in rows if row.flags_read)),
            [
                [(row.name.removeprefix(f"{deployment}: "), by_flag(row.command)) for row in alike]
                for _, alike in groupby((row for row in rows if row.command), _hide_numbers)
            ],
        )
        for deployment, rows in by_deployment.items()
    ]


def _hide_numbers(row: ServingCommand) -> str:
    return re.sub(r"[0-9]+(,[0-9]+)*", "0", row.command)


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
            else " \\\n  ".join(_FLAGS.findall(line))
        )
    return "\n".join(lines)
