"""Published end-to-end figures beside what the product's own specs, plans, cost models and engine
give for the same case.

One topic a file: a frozen model that knows the columns of a row and answers it. Nothing is fitted
on figures of throughput, but that TensorRT-LLM before 0.17 is assumed by one of them (Mixtral-8x7B,
128 tokens in and out); NVLinkOneSided's kernels are fitted on the 51 rows that are of them. The
shipped tables lie in ``workloads/validation``, whose README describes their columns; ``moesim
validate published FILE`` takes a table of the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import pandas as pd

from simulator.base.arrays import Floats
from simulator.base.data import cache_lookups, search_folders
from simulator.base.errors import UserError
from simulator.base.plugins import available, build
from simulator.base.progress import Progress, show_nothing
from simulator.lab.results.scores import SCORE_COLUMNS, is_answered
from simulator.lab.validation import OK, Answered, Answers
from simulator.lab.validation.splits import count_sides
from simulator.lab.validation.tables import Table, read_table

_FAMILY = "validation.published"
_DATA = "workloads/validation"
FIGURE_COLUMNS = ("group", "case", "quantity", "unit", "source")
"""Columns of every table of figures beside those of its topic. The figure itself is in ``value``,
and ``refused`` says why a row is not modelled."""
BY_LOAD = ", by load"
"""End of the name of a group that compares what load does to a ratio."""
SAME_RELEASE, RELEASE_UNSAID = "experts spread : split", "experts spread : split, a release unsaid"
"""Groups of pairs whose releases are known to be one, and of pairs where one does not say it."""
_PLACE = re.compile(r"^published( \[[^]]*\])*: ")
"""Begin of errors that name the deployment made for a row."""


class Part(NamedTuple):
    """Part of a figure's time that one calibration entry prices."""

    entry: str
    share: float
    """Share of the time."""
    low: float
    """Factor on the entry's times for their low."""
    high: float
    """Factor on the entry's times for their high."""


class Reply(NamedTuple):
    """Answer of a topic to one row, in the unit of the row's figure."""

    predicted: float
    low: float
    high: float
    status: str
    because: str = ""
    parts: tuple[Part, ...] = ()
    """Parts of the time, where they are known: two figures err together in the parts that
    they share."""

    @classmethod
    def from_times(
        cls,
        rate: float,
        band: tuple[float, float],
        status: str,
        because: str,
        parts: tuple[Part, ...] = (),
    ) -> Reply:
        """Reply of a rate.

        Args:
            band: factors on its time for the low and the high of that.
        """
        low, high = band
        return cls(rate, rate / high, rate / low, status, because, parts)

    @classmethod
    def from_answers(
        cls, answers: Answers, row: int, convert: Callable[[Floats], float], because: str
    ) -> Reply:
        """Reply of a row of a suite's answers.

        Args:
            convert: from its seconds ``[M]`` to the figure.
        """
        status = answers.status[row]
        if status.startswith("unsupported"):
            return cls.refuse_row(status.removeprefix("unsupported").lstrip(": "))
        parts = (answers.seconds, answers.low, answers.high)
        value, *ends = (float(convert(part[row])) for part in parts)
        return cls(value, min(ends), max(ends), status, because)

    @classmethod
    def refuse_row(cls, why: str) -> Reply:
        """A row that cannot be answered, and why."""
        nothing = float("nan")
        reason = _PLACE.sub("", " ".join(why.split()))
        return cls(nothing, nothing, nothing, f"unsupported: {reason}")


def extrapolate(status: str, why: str) -> str:
    """Add a reason to a status, which is an extrapolation then.

    >>> extrapolate("ok", "a guess"), extrapolate("extrapolated: far", "a guess")
    ('extrapolated: a guess', 'extrapolated: far; a guess')
    """
    return f"extrapolated: {why}" if status == OK else f"{status}; {why}"


class Topic(Protocol):
    """A file in this folder: a frozen pydantic model without fields."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a table must have to be of this topic."""
        ...

    def replies(self, table: Table, tick: Progress) -> list[Reply]:
        """Reply to every row. The measured figures are not looked at."""
        ...

    def scores(self, table: Table, replies: list[Reply]) -> pd.DataFrame:
        """:data:`simulator.lab.results.scores.SCORE_COLUMNS` without ``suite``: rows that have a
        figure, and ratios between them.
        """
        ...


def topics() -> tuple[str, ...]:
    """Names of the topics."""
    return available(_FAMILY)


def topic_of(columns: set[str]) -> str | None:
    """The topic whose tables have these columns; of several the one that asks for most of them."""
    found = [
        (len(topic.columns), name)
        for name in topics()
        if set((topic := _topic(name)).columns) <= columns
    ]
    return max(found)[1] if found else None


@cache_lookups()
def run(file: Path | None, tick: Progress = show_nothing) -> Answered:
    """Answer the cases in ``file``, or the shipped ones: to the columns of the input come
    ``predicted``, ``low`` and ``high`` in the unit of the figure, ``status``, and ``because``: what
    the prediction rests on (batch reached, KV tokens, shares of the time).

    Raises:
        UserError: if the file cannot be read, or its columns are of no topic.
    """
    parts = [_answer(path, tick) for path in (_list_shipped() if file is None else [file])]
    table, rows = (pd.concat(some, ignore_index=True) for some in zip(*parts, strict=True))
    source = "shipped cases" if file is None else str(file)
    return Answered("published", source, table, rows, order=orders_of(rows))


def _list_shipped() -> list[Path]:
    """The shipped tables; the user's own of the same name win."""
    files: dict[str, Path] = {}
    for folder in search_folders(_DATA):
        for path in sorted(folder.glob("*.csv")):
            files.setdefault(path.name, path)
    return sorted(files.values())


def _topic(name: str) -> Topic:
    topic: Topic = build(_FAMILY, {"kind": name}, "validate published")
    return topic


def _answer(path: Path, tick: Progress) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of a file with its answers, and its scores."""
    read = read_table(path)
    name = topic_of(set(read.values.columns))
    if name is None:
        wanted = "; ".join(f"{topic}: {', '.join(_topic(topic).columns)}" for topic in topics())
        raise UserError(f"{path}: its columns are those of no published topic ({wanted})")
    topic = _topic(name)
    replies = topic.replies(read, tick)
    answers = pd.DataFrame(replies, index=read.texts.index).drop(columns="parts")
    rows = topic.scores(read, replies).assign(suite="published")
    table = pd.concat([read.texts.assign(topic=name), answers], axis=1)
    return table, rows[list(SCORE_COLUMNS)]


def orders_of(rows: pd.DataFrame) -> tuple[dict[str, object], ...]:
    """The order of the two deployments of each published ratio.

    Pairs of spread and split experts of which one does not say its release may differ in more, and
    what load does to a ratio is no pair: both are counted on their own.
    """
    ratios = rows[
        (rows["quantity"] == "ratio") & is_answered(rows["status"]) & rows["predicted"].notna()
    ]
    is_trend = ratios["group"].str.endswith(BY_LOAD)
    is_unsaid = ratios["group"].eq(RELEASE_UNSAID)
    kinds = (
        ("published", ~is_trend & ~is_unsaid),
        (f"published, {RELEASE_UNSAID},", is_unsaid),
        ("published, spread : split at much load against at little,", is_trend),
    )
    return tuple({"suite": name, **count_sides(ratios[chosen])} for name, chosen in kinds)
