"""What an answer hands over: scenario files and commands; and what its numbers rest on."""

from __future__ import annotations

from simulator.results.answer.parts import Part


class ScenarioFile(Part):
    """A scenario that ``moesim run`` takes as it is."""

    file: str
    """Name of the file beside the answer."""
    text: str
    """What the file holds, in TOML."""


class ServingCommand(Part):
    """A command that starts a server or the router of a deployment."""

    deployment: str
    """The deployment in words."""
    name: str
    """What the command starts, and where."""
    model: str = ""
    """Name of the model."""
    command: str
    """The command for a shell."""
    not_expressed: tuple[str, ...] = ()
    """What the flags do not express, a sentence each."""
    flags_read: str = ""
    """In which release the flags were read, when and where."""


class Handover(Part):
    """Scenario files, and commands that start the servers."""

    scenarios: tuple[ScenarioFile, ...] = ()
    """Scenario files."""
    commands: tuple[ServingCommand, ...] = ()
    """Commands of every model's best deployment."""


class Assumption(Part):
    """A number that was taken from elsewhere."""

    what: str
    """What the number is of."""
    value: str
    """The number in words, with its unit."""
    kind: str
    """How sure it is: assumed, fitted, measured or published."""
    source: str
    """Where it was taken from."""


class Basis(Part):
    """What a deployment's numbers rest on."""

    assumptions: tuple[Assumption, ...] = ()
    """Numbers that were taken from elsewhere."""
    warnings: tuple[str, ...] = ()
    """What lies outside of measurements."""
    is_rumour: bool = False
    """Whether the model's sizes are not published."""
    model_title: str = ""
    """The model's title."""
