"""What is handed over: scenario files, and commands in blocks that can be copied, with what their
flags do not express.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from simulator.report.markup import Markup, join, tag
from simulator.results.answer.handover import Handover, ScenarioFile, ServingCommand

_WIDEST = 76
"""Letters of a command's line; a longer one goes on below."""


def handover(found: Handover | None) -> Markup | None:
    """The scenario files, and by deployment the commands that start its servers; None without
    either.
    """
    if found is None:
        return None
    by_deployment: dict[str, list[ServingCommand]] = {}
    for row in found.commands:
        by_deployment.setdefault(row.deployment, []).append(row)
    blocks = [_scenarios(found.scenarios)] if found.scenarios else []
    blocks += [_commands(name, rows) for name, rows in by_deployment.items()]
    return join(blocks) if blocks else None


def _scenarios(scenarios: Sequence[ScenarioFile]) -> Markup:
    said = tag(
        "p",
        "The planned traffic on these deployments, to be simulated again in detail.",
        class_="definition",
    )
    parts: list[Markup] = []
    for scenario in scenarios:
        parts.append(copyable(scenario.file, f"moesim run {scenario.file}"))
        parts.append(
            tag(
                "details",
                tag("summary", f"What {scenario.file} holds"),
                copyable("The file", scenario.text),
            )
        )
    return tag("article", tag("h3", "Scenario files"), said, *parts, class_="card handover")


def _commands(deployment: str, rows: list[ServingCommand]) -> Markup:
    notes = dict.fromkeys(note for row in rows for note in row.not_expressed)
    parts = (
        [
            tag("h4", "What the flags do not express"),
            tag("ul", *(tag("li", note) for note in notes), class_="notes"),
        ]
        if notes
        else []
    )
    sources = dict.fromkeys(row.flags_read for row in rows if row.flags_read)
    parts += [tag("p", " ".join(sources), class_="definition")] if sources else []
    for first, *alike in _alike([row for row in rows if row.command]):
        parts.append(_command(deployment, first))
        if alike:
            what = "1 more like it" if len(alike) == 1 else f"{len(alike)} more like it"
            names = ", ".join(_name(deployment, row) for row in alike[:2])
            said = f"{what}: {names}{', ...' if len(alike) > 2 else ''}"
            parts.append(
                tag("details", tag("summary", said), *(_command(deployment, row) for row in alike))
            )
    return tag("article", tag("h3", deployment), *parts, class_="card handover")


def _command(deployment: str, row: ServingCommand) -> Markup:
    name = _name(deployment, row)
    return copyable(f"{name[:1].upper()}{name[1:]}", by_flag(row.command))


def _name(deployment: str, row: ServingCommand) -> str:
    return row.name.removeprefix(f"{deployment}: ")


def _alike(rows: list[ServingCommand]) -> list[list[ServingCommand]]:
    """Runs of commands that differ in numbers only: the servers of one kind."""
    return [
        list(run)
        for _, run in groupby(rows, lambda row: re.sub(r"[0-9]+(,[0-9]+)*", "0", row.command))
    ]


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


def copyable(title: str, text: str) -> Markup:
    """A block of text under its title, with a button that copies it."""
    button = tag(
        "button",
        "Copy",
        tag("span", f" {title}", class_="unseen"),
        type="button",
        class_="copy",
        aria_live="polite",
    )
    return tag(
        "div",
        tag("div", tag("h4", title), button, class_="bar"),
        tag("pre", text, tabindex=0),
        class_="copyable",
    )
