"""Tests of claims, one a file: each tries a claim under conditions and says what it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol, get_args

from pydantic import Field

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, validate
from simulator.base.progress import Progress
from simulator.base.reading import read_toml
from simulator.lab.results.claims import (
    Case,
    Finding,
    Outcome,
    say_whether,
    tell_deciding,
    tell_range,
)

RIVALS = {
    "total_params": "dense, iso-total-params",
    "quality": "dense, iso-loss",
    "active_params": "dense, iso-active-params",
}
"""Rivals in words, by the measure in which they are equal."""


class ClaimTest(Protocol):
    """Test of one kind of claim."""

    def find(self, seeds: Sequence[int], tick: Progress) -> Finding:
        """Try the claim.

        Args:
            seeds: of the simulations; bands are over them.

        Raises:
            UserError: if something that the claim's file names does not exist or fit.
        """


class Cases(tuple[Case, ...]):
    """Cases that a sentence speaks of, which it tells as its format says: ``range``, ``whether``,
    ``Whether`` at the beginning of a sentence, ``share`` (of those that speak for the claim),
    ``deciding``, or the number of ``all``, of those ``for`` the claim, ``against`` it or ``open``.
    """

    def __format__(self, how: str) -> str:
        if how == "range":
            return tell_range(self)
        if how == "deciding":
            return tell_deciding(self) or ""
        if how == "share":
            return f"{self:for} of {self:all}"
        if how == "all":
            return str(len(self))
        if how in get_args(Outcome):
            return str(sum(case.outcome == how for case in self))
        said = say_whether(self)
        return said.capitalize() if how == "Whether" else said

    @classmethod
    def by_rival(cls, cases: Iterable[Case], measures: Iterable[str]) -> dict[str, Cases]:
        """Cases beside the rival of each measure, by the measure."""
        found = cls.by(cases, "rival")
        return {measure: found.get(RIVALS[measure], cls()) for measure in measures}

    @classmethod
    def by(cls, cases: Iterable[Case], condition: str) -> dict[str, Cases]:
        """Cases by their value of a condition (``rival`` is one), in order of appearance."""
        found: dict[str, list[Case]] = {}
        for case in cases:
            found.setdefault(case.place[condition], []).append(case)
        return {value: cls(own) for value, own in found.items()}


class Sentence(Frozen):
    """Template of a sentence."""

    text: str
    each: str = ""
    """Name of what it is said of each of, as ``value`` and ``cases``; absent = it is said once."""


class Telling(Frozen):
    """A file beside a test: what is said of its claim, in templates."""

    answer: str
    sentences: Annotated[tuple[Sentence, ...], Field(strict=False)]
    limits: Annotated[tuple[str, ...], Field(strict=False)]

    @classmethod
    def load(cls, kind: str) -> Telling:
        """Read the file of a kind of test."""
        path = Path(__file__).with_name(f"{kind}.toml")
        return validate(cls, read_toml(path), str(path))

    def tell(
        self,
        cases: Sequence[Case],
        facts: Mapping[str, object],
        each: Mapping[str, Mapping[str, Cases]] | None = None,
    ) -> Finding:
        """Tell what was found. Sentences of which nothing is left are left out.

        Args:
            facts: cases and values by their names in the templates; ``all`` cases that count are
                among them.
            each: cases by value, for sentences that are said of each.
        """
        facts = {"all": Cases(case for case in cases if case.counts), **facts}
        said = []
        for sentence in self.sentences:
            of_each = (each or {})[sentence.each] if sentence.each else {"": Cases()}
            for value, own in of_each.items():
                said.append(sentence.text.format(**facts, value=value, cases=own))
        return Finding(
            cases=tuple(cases),
            answer=self.answer.format(**facts),
            sentences=tuple(filter(None, said)),
            limits=tuple(limit.format(**facts) for limit in self.limits),
        )


def check_tried(cases: Sequence[Case]) -> None:
    """Refuse a claim that nothing was tried of, which no verdict can be reached on.

    Raises:
        UserError: if there is no case that counts.
    """
    if not any(case.counts for case in cases):
        raise UserError(
            "claim [trial]: no model runs under any of these conditions; name more GPUs or memory, "
            "or smaller models"
        )


def name_rival(rival: str) -> str:
    """A rival without what all are."""
    return rival.removeprefix("dense, ").removesuffix(", per token")
