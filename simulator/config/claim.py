"""Files of ``workloads/claims``: a claim as people say it, how it is tried, and what was published
of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from simulator.base.data import available_files, find_file
from simulator.base.frozen import Frozen, ListOf, PairOf, Policy, validate
from simulator.base.kinds import PolicyOf
from simulator.base.quantities import Label, value_range
from simulator.base.reading import read_toml

FOLDER = "workloads/claims"


class PublishedFigure(Frozen):
    """A figure that somebody measured and published."""

    text: Label
    """Finding in a sentence, with its number and its conditions."""
    source: Label
    """Publication, and the place in it."""
    speaks: Literal["for", "against", "open"]
    """Whether it speaks for the claim, against it, or leaves it open."""


class ClaimFile(Frozen):
    """A claim that people make, and the conditions under which it is tried."""

    name: Label
    """Name of the claim; absent = the file's."""
    title: Label
    """Claim as people say it."""
    asks: Label
    """Claim as a question that can be tried, in plain words."""
    place: Annotated[int, value_range(1, 1000)] = 1000
    """Ordinal number on the page; those without one come last."""
    trial: Annotated[Policy, PolicyOf("commands.claim_tests")]
    """Test of the claim and its conditions."""
    real: Annotated[Policy, PolicyOf("commands.claim_measurements")] | None = None
    """Measurement of the claim on the machine at hand, which ``moesim claims --real`` takes;
    absent = nothing is measured."""
    maps: ListOf[PairOf[str]] = ()
    """Pairs of conditions whose map the page shows, rows first."""
    evidence: ListOf[PublishedFigure] = ()
    """Published figures, which are shown beside what was simulated."""


def load_claim(name: str) -> ClaimFile:
    """Read a claim by the name of a shipped or own file, or by its path.

    Raises:
        UserError: if there is none, or its file is wrong.
    """
    path = Path(name) if name.endswith(".toml") else find_file(FOLDER, name, "claims")
    return validate(ClaimFile, {"name": path.stem, **read_toml(path)}, str(path))


def list_claims() -> list[str]:
    """Names of all claims, in the order of the page."""
    names = available_files(FOLDER)
    return sorted(names, key=lambda name: (load_claim(name).place, name))
