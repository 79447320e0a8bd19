"""Claims that people make of mixtures of experts, each with the conditions that it was tried under
and the verdict that follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, Self

import pandas as pd

from simulator.base.frozen import Frozen
from simulator.config.claim import PublishedFigure
from simulator.results.results_folder import Content, ResultsFolder

Outcome = Literal["for", "against", "open"]
Runs = Literal["both", "moe", "rival", "neither"]
Verdict = Literal["confirmed", "bounded", "refuted"]

_TABLE = "claims.csv"
_CLEAR = 0.9
"""Share of the conditions that must speak clearly for a claim to be confirmed, or against it to be
refuted."""


class Spread(NamedTuple):
    """Middle, lowest and highest of a ratio, as a case has them."""

    ratio: float
    low: float
    high: float


def measure_seeds(values: Sequence[float]) -> Spread:
    """Median, lowest and highest value over seeds."""
    return Spread(median(values), min(values), max(values))


class Case(Frozen):
    """A mixture of experts against a rival under some conditions."""

    rival: str
    """Rival in words: ``dense, iso-loss``."""
    conditions: dict[str, str]
    """Values of the conditions by their names."""
    ratio: float | None = None
    """Ratio that is above 1 where the claim holds; absent where one side cannot run at all."""
    low: float | None = None
    """Lowest ratio: over seeds, and by how far off the simulator was elsewhere, where that is
    known."""
    high: float | None = None
    """Highest ratio."""
    runs: Runs = "both"
    """Sides that can run under the conditions."""
    moe: str = ""
    """Figure of the mixture of experts with its unit."""
    other: str = ""
    """Figure of the rival with its unit."""
    counts: bool = True
    """Whether the claim speaks of this rival; others stand beside it."""
    note: str = ""
    """Remark: what decides, or what is assumed."""

    @property
    def place(self) -> dict[str, str]:
        """Values of its conditions, the rival among them."""
        return {"rival": self.rival, **self.conditions}

    @property
    def alone(self) -> str:
        """Side that runs alone, in words."""
        return "only the mixture" if self.runs == "moe" else "only the rival"

    @property
    def outcome(self) -> Outcome:
        """Whether the case speaks for the claim, against it, or leaves it open."""
        if self.runs == "moe" or (self.low is not None and self.low > 1):
            return "for"
        if self.runs == "rival" or (self.high is not None and self.high < 1):
            return "against"
        return "open"


class Figure(Frozen):
    """A number beside a verdict, in words."""

    label: str
    """Name of the number."""
    value: str
    """Value with its unit, and its band where it has one."""


class Curve(Frozen):
    """A line of a figure."""

    name: str
    """Name of the line."""
    x: tuple[float, ...]
    """Places on the horizontal axis."""
    y: tuple[float, ...]
    """Values."""


class Chart(Frozen):
    """A figure of lines beside a verdict."""

    title: str
    """Title."""
    caption: str
    """Sentence that says how to read it."""
    x: str
    """Title of the horizontal axis."""
    y: str
    """Title of the vertical axis."""
    curves: tuple[Curve, ...]
    """Lines."""
    is_log: bool = False
    """Whether the horizontal axis is logarithmic."""


class Measured(Frozen):
    """Measurement of a claim on one machine, with models and shards that ran for real."""

    cases: tuple[Case, ...]
    """Cases with their measured ratios; verdicts do not rest on them."""
    sentences: tuple[str, ...]
    """Findings with numbers."""
    command: str
    """Command that measures it again, alone."""
    machine: str
    """Processor and its cores."""
    made: str
    """Day, and versions."""
    others_share: float
    """Share of the cores that other programs took meanwhile."""
    took_s: float
    """Seconds that it took."""


class Finding(Frozen):
    """Findings of the test of a claim."""

    answer: str
    """Answer in plain words, behind the verdict."""
    sentences: tuple[str, ...]
    """Reasons with numbers."""
    cases: tuple[Case, ...]
    """Cases, those that do not count among them."""
    figures: tuple[Figure, ...] = ()
    """Numbers beside the verdict."""
    charts: tuple[Chart, ...] = ()
    """Figures of lines."""
    limits: tuple[str, ...] = ()
    """Sentences on what was not tried, and what is assumed."""


class ClaimAnswer(Finding):
    """A claim with its verdict and everything that the verdict rests on."""

    name: str
    """Name of the claim's file."""
    statement: str
    """Claim as people say it."""
    asks: str
    """Claim as a question that can be tried."""
    verdict: Verdict
    """Verdict over the cases that count."""
    evidence: tuple[PublishedFigure, ...]
    """Published figures."""
    maps: tuple[tuple[str, str], ...]
    """Pairs of conditions whose map the page shows."""
    seeds: tuple[int, ...]
    """Seeds of the simulations."""
    wall_s: float
    """Seconds that the test took."""
    measured: Measured | None = None
    """Measurement on this machine; ``None`` where nothing was measured."""


class Turn(NamedTuple):
    """Cases that share a value of one condition."""

    condition: str
    value: str
    num_for: int
    num_against: int
    num_cases: int


def reach_verdict(cases: Iterable[Case]) -> Verdict:
    """Verdict over the cases that count: confirmed where nine in ten speak clearly for the claim
    and none against it, refuted the other way round, and bounded by conditions otherwise.
    """
    outcomes = [case.outcome for case in cases if case.counts]
    shares = {one: outcomes.count(one) / max(len(outcomes), 1) for one in ("for", "against")}
    if shares["for"] >= _CLEAR and not shares["against"]:
        return "confirmed"
    if shares["against"] >= _CLEAR and not shares["for"]:
        return "refuted"
    return "bounded"


def list_turns(cases: Sequence[Case]) -> Iterator[Turn]:
    """Counts of outcomes by each value of each condition that takes several, the rival among
    them.
    """
    tables = [case.place for case in cases]
    for condition in dict.fromkeys(name for table in tables for name in table):
        values = dict.fromkeys(table[condition] for table in tables if condition in table)
        for value in values if len(values) > 1 else ():
            own = [case.outcome for case in cases if case.place.get(condition) == value]
            yield Turn(condition, value, own.count("for"), own.count("against"), len(own))


class Cell(NamedTuple):
    """Cases at one place of a map."""

    cases: tuple[Case, ...]

    @property
    def outcome(self) -> Outcome:
        """Outcome that all cases share, or ``open``."""
        outcomes = {case.outcome for case in self.cases}
        return outcomes.pop() if len(outcomes) == 1 else "open"

    @property
    def text(self) -> str:
        """Lowest and highest ratio: ``0.9 to 1.4``; who runs alone where no ratio is."""
        return _tell_ends(self.cases) or self.cases[0].alone


def make_map(
    cases: Sequence[Case], row: str, column: str
) -> tuple[list[str], list[str], dict[tuple[str, str], Cell]]:
    """Rows, columns and cells of the map of two conditions (``rival`` is one), over the cases that
    count and have both.
    """
    places: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        at = case.place
        if case.counts and row in at and column in at:
            places.setdefault((at[row], at[column]), []).append(case)
    rows = list(dict.fromkeys(place[0] for place in places))
    columns = list(dict.fromkeys(place[1] for place in places))
    return rows, columns, {place: Cell(tuple(own)) for place, own in places.items()}


def tell_range(cases: Iterable[Case]) -> str:
    """Lowest and highest ratio of some cases: ``0.63 to 3.9 times``; ``1.2 times`` of one."""
    ends = _tell_ends(cases)
    return f"{ends} times" if ends else "never together"


def _tell_ends(cases: Iterable[Case]) -> str:
    ratios = sorted(case.ratio for case in cases if case.ratio is not None)
    return " to ".join(dict.fromkeys(f"{ratio:.2g}" for ratio in (*ratios[:1], *ratios[-1:])))


_EQUAL = 1.01
"""Ratio up to which two models are alike."""


def say_whether(cases: Sequence[Case]) -> str:
    """Whether cases speak for a claim, in a word: ``yes`` where all do, ``mostly`` where two in
    three do, ``it depends`` where fewer do; where none does ``undecided`` if
    some may, else ``no``; ``not tried`` without any.
    """
    if not cases:
        return "not tried"
    in_favour = sum(case.outcome == "for" for case in cases)
    if in_favour == len(cases):
        return "yes"
    if in_favour * 3 >= 2 * len(cases):
        return "mostly"
    if in_favour:
        return "it depends"
    may_speak = any(case.high is not None and case.high > _EQUAL for case in cases)
    return "undecided" if may_speak else "no"


def name_condition(condition: str) -> str:
    """Name of a condition for people."""
    return "baseline" if condition == "rival" else condition


def find_deciding(cases: Sequence[Case]) -> list[Turn]:
    """Find the condition that turns the verdict most: the one whose values differ most in the share
    of cases that speak for the claim; none where none does.
    """
    turns: dict[str, list[Turn]] = {}
    for turn in list_turns([case for case in cases if case.counts]):
        turns.setdefault(turn.condition, []).append(turn)

    def width(condition: str) -> float:
        shares = [turn.num_for / turn.num_cases for turn in turns[condition]]
        return max(shares) - min(shares)

    decides = max(turns, key=width, default=None)
    return [] if decides is None or not width(decides) else turns[decides]


def tell_deciding(cases: Sequence[Case]) -> str | None:
    """Sentence on the condition that turns the verdict most; ``None`` where none does."""
    turns = find_deciding(cases)
    if not turns:
        return None
    told = [f"{turn.value}: {turn.num_for} of {turn.num_cases}" for turn in turns]
    what = name_condition(turns[0].condition)
    basis = _FITTED if what == "engine" else ""
    counts = ", ".join(told)
    return (
        f"The most influential factor is the {what}. Conditions that speak for it: {counts}.{basis}"
    )


_FITTED = (
    " Engines differ by the time of their own beside a step, which is fitted to published servers "
    "and no property of the models: another release may turn it."
)


class Advice(NamedTuple):
    """Answer to a claim in one case of somebody's."""

    case: str
    """Value of the condition that turns the claim most; empty where none does."""
    holds: str
    """Whether it holds, as :func:`say_whether` says it."""
    ratios: str
    """Lowest and highest ratio."""


def list_advice(cases: Sequence[Case]) -> list[Advice]:
    """List the answers to a claim at each value of the condition that turns it most."""
    counted = [case for case in cases if case.counts]
    parts = [("", counted)]
    if turns := find_deciding(counted):
        condition = turns[0].condition
        parts = [
            (
                f"{name_condition(condition)}: {turn.value}",
                [case for case in counted if case.place.get(condition) == turn.value],
            )
            for turn in turns
        ]
    return [Advice(case, say_whether(own), tell_range(own)) for case, own in parts]


@dataclass(frozen=True)
class ClaimsResults(ResultsFolder):
    """Claims that were tried together.

    ``run`` has ``name``, ``seeds``, ``verdict`` and provenance.
    """

    answers: tuple[ClaimAnswer, ...]
    """Claims with their verdicts, in order."""

    writer = "moesim claims"
    own_files = frozenset({_TABLE})

    def list_others(self) -> dict[str, Content]:
        """Table of all cases, a row each, with their conditions as JSON."""
        rows = [
            {
                "claim": answer.name,
                "rival": case.rival,
                "conditions": json.dumps(case.conditions),
                "outcome": case.outcome,
                **case.model_dump(
                    include={"counts", "ratio", "low", "high", "runs", "moe", "other"}
                ),
            }
            for answer in self.answers
            for case in answer.cases
        ]
        return {_TABLE: pd.DataFrame(rows)}

    @classmethod
    def read_files(cls, folder: Path, run: dict[str, Any]) -> Self:
        """Read the answers."""
        tables = map(json.dumps, run["claims"])
        return cls(run, tuple(map(ClaimAnswer.model_validate_json, tables)))


VERDICTS = {
    "confirmed": "Confirmed",
    "bounded": "It depends",
    "refuted": "Refuted",
}
"""Verdicts in words."""


def tell_claims(answers: Sequence[ClaimAnswer]) -> tuple[str, list[str]]:
    """Headline over all claims, and a line for each: that of one claim is its answer."""
    if len(answers) == 1:
        (only,) = answers
        return f"{only.statement} {only.answer}", []
    counts = {name: sum(one.verdict == name for one in answers) for name in VERDICTS}
    confirmed, refuted = counts["confirmed"], counts["refuted"]
    rest = f" and {refuted} nowhere" if refuted else ""
    headline = (
        f"Of {len(answers)} claims about mixtures of experts {confirmed or 'none'} "
        f"{'hold' if confirmed > 1 else 'holds'} everywhere{rest}: how far each does, in numbers."
    )
    return headline, [f"{one.statement} {one.answer}" for one in answers]
