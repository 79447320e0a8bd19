"""Hand-over of an answer: scenario files and commands; and the sources of its numbers."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from simulator.results.answer.parts import Part

RECOMMENDED, COMPARED = "recommended.toml", "compared.toml"
"""Scenario files of a plan's folder: the best deployment, and the best of several models."""
TRAFFIC = "traffic.parquet"
"""Requests of these scenarios, where no keys cut them out of their source."""
MANIFEST = "serve/kubernetes.yaml"
SERVING = (
    *(f"serve/{name}.sh" for name in ("server", "prompt-server", "decode-server", "router")),
    MANIFEST,
)
"""Files that start the best deployment: a script for each kind of server, and :data:`MANIFEST`."""


class HandoverFile(Part):
    """A file that is handed over."""

    file: str
    """Name of the file beside the answer."""
    text: str
    """Contents of the file."""


class ServingCommand(Part):
    """A command that starts a server or the router of a deployment."""

    deployment: str
    """The deployment in words."""
    name: str
    """Name of the server that the command starts, and its place."""
    model: str = ""
    """Name of the model."""
    command: str
    """The command for a shell."""
    not_expressed: tuple[str, ...] = ()
    """Settings that the flags do not express, a sentence each."""
    flags_read: str = ""
    """Release that the flags were read in, with date and place."""


class Handover(Part):
    """Scenario files, and commands that start the servers."""

    scenarios: tuple[HandoverFile, ...] = ()
    """Scenarios that ``moesim run`` takes as they are."""
    traffic: Any = Field(default=None, exclude=True, repr=False)
    """Requests of the scenarios (a ``RequestTrace``), where these name :data:`TRAFFIC`."""
    commands: tuple[ServingCommand, ...] = ()
    """Commands of every model's best deployment."""
    serving: tuple[HandoverFile, ...] = ()
    """The commands of the best deployment as files, of :data:`SERVING`."""


class Assumption(Part):
    """A number that was taken from elsewhere."""

    what: str
    """Quantity that the number is about."""
    value: str
    """The number in words, with its unit."""
    kind: str
    """Certainty of the number: assumed, fitted, measured or published."""
    source: str
    """Source of the number."""


class Basis(Part):
    """Sources of a deployment's numbers."""

    assumptions: tuple[Assumption, ...] = ()
    """Numbers that were taken from elsewhere."""
    warnings: tuple[str, ...] = ()
    """Conditions that lie outside of measurements."""
    is_rumour: bool = False
    """Whether the model's sizes are not published."""
    model_title: str = ""
    """The model's title."""


_WIDEST = 76
"""Letters of a command's line; a longer one goes on below."""
_FLAGS = re.compile(r"""(?:(?! --)(?:'[^']*(?:'|$)|"[^"]*(?:"|$)|.))+""")
"""Pieces of a line, cut before each flag that stands outside quotes."""


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
