"""Hand-over of an answer: scenario files and commands; and the sources of its numbers."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from simulator.results.answer.parts import Part

RECOMMENDED, COMPARED = "recommended.toml", "compared.toml"
"""Scenario files of a plan's folder: the best deployment, and the best of several models."""
TRAFFIC = "traffic.parquet"
"""Requests of these scenarios, where no keys cut them out of their source."""


class ScenarioFile(Part):
    """A scenario that ``moesim run`` takes as it is."""

    file: str
    """Name of the file beside the answer."""
    text: str
    """Contents of the file, in TOML."""


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

    scenarios: tuple[ScenarioFile, ...] = ()
    """Scenario files."""
    traffic: Any = Field(default=None, exclude=True, repr=False)
    """Requests of the scenarios (a ``RequestTrace``), where these name :data:`TRAFFIC`."""
    commands: tuple[ServingCommand, ...] = ()
    """Commands of every model's best deployment."""


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
