"""How far predictions are from measurements: one table for every suite, and the few numbers that
people compare.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binom

SCORE_COLUMNS = (
    "suite",
    "group",
    "subject",
    "quantity",
    "unit",
    "measured",
    "predicted",
    "low",
    "high",
    "status",
)
"""Of the long table: one row for each measured quantity.

``group`` is what errors are reported by (a GPU and a dtype, an engine), ``subject`` names the row
for people. ``predicted``, ``low`` and ``high`` are in the unit of ``measured``, and not a number
where ``status`` begins with ``unsupported``.
"""


MOE, DENSE = "MoE", "dense"
"""Words of a group that say what kind of model its rows are of."""


class Target(NamedTuple):
    """How far off predictions may be: limits of the absolute relative error."""

    what: str
    suites: tuple[str, ...]
    median: float
    p90: float
    quantity: str = ""
    """Of rows with this quantity only; empty for all."""
    word: str = ""
    """Of rows whose group has this word only; empty for all."""

    def covers(self, rows: pd.DataFrame) -> pd.Series:
        """Which rows of a table with ``suite``, ``quantity`` and ``group`` it speaks of."""
        covered = rows["suite"].isin(self.suites)
        if self.quantity:
            covered &= rows["quantity"] == self.quantity
        if self.word:
            covered &= pd.Series(
                [self.word in group.split() for group in rows["group"].astype(str)],
                index=rows.index,
                dtype=bool,
            )
        return covered


TARGETS = (
    Target("Grouped GEMM of a rank's experts, balanced and skewed", ("moe", "eplb"), 0.08, 0.25),
    Target("Dense GEMM kernels", ("gemm",), 0.10, 0.30),
    Target("Attention kernels", ("attention",), 0.10, 0.30),
    Target("MLA kernels", ("mla",), 0.10, 0.30),
    Target("All-to-all", ("alltoall",), 0.08, 0.20),
    Target("Collectives", ("collective",), 0.08, 0.20),
    Target("Serving TPOT, MoE", ("serving",), 0.12, 0.30, "tpot", MOE),
    Target("Serving TPOT, dense", ("serving",), 0.10, 0.30, "tpot", DENSE),
    Target("Serving TTFT", ("serving",), 0.20, 0.50, "ttft"),
    Target("Published throughput", ("published",), 0.12, 0.25, "throughput"),
    Target("MoE : dense ratio on one machine", ("published",), 0.08, 0.15, "ratio", MOE),
)
"""They hold for models and GPUs that no calibration has seen, and are not to be moved."""
LEAST_RIGHT_ORDER = 0.90
"""Share of pairs of deployments, more than 10 % apart, whose order is right."""
BANDS_HOLD = (0.75, 0.85)
"""Share of measurements inside their 80 % bands."""
LEAST_COMPARED = 20
"""Pairs, or measurements with a band, below which a share of them says nothing."""
_BY_CHANCE = 0.05
"""How often a band that holds what it is meant to may be called wrong, were rows independent of
each other."""
LEAST_ANSWERED = {"serving": 0.90}
"""Share of a suite's rows that must have a prediction."""


@dataclass(frozen=True)
class Scoreboard:
    """What ``moesim validate`` found."""

    run: dict[str, Any]
    """Command, versions, when, the tables that were read and those that were not, and why."""
    rows: pd.DataFrame
    """:data:`SCORE_COLUMNS`, and ``source``: the file of a row."""
    fits: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What the calibrations say of themselves: a row a fit."""
    order: pd.DataFrame = field(default_factory=pd.DataFrame)
    """``suite``, ``pairs`` and ``right``: how many pairs of deployments were compared, and whose
    order is right."""
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)
    """``what`` of a target, ``rows``, ``fits``, ``missed``, ``median`` and ``p90``: what the
    calibrations say of their errors on models, shapes and GPUs that were left out of their fits."""

    def is_in_sample(self, rows: pd.DataFrame) -> pd.Series:
        """Which of these rows are of a table that the calibrations were fitted on."""
        known = {table["source"] for table in self.run.get("tables", []) if table.get("in_sample")}
        return (
            rows["source"].isin(known)
            if "source" in rows.columns
            else pd.Series(data=False, index=rows.index)
        )

    def in_sample(self, rows: pd.DataFrame | None = None) -> bool:
        """Whether any of these rows, or any at all, is."""
        return bool(self.is_in_sample(self.rows if rows is None else rows).any())


def remarks(board: Scoreboard) -> list[str]:
    """Sentences on rows that are answered but not compared, a table and column each, and on those
    that count more than once.
    """
    said = []
    for table in board.run.get("tables", []):
        name, rows = PurePath(table["source"]).name, table["rows"]
        if lacking := table.get("lacking"):
            has = f"; the table has {', '.join(table['spare'])}" if table.get("spare") else ""
            said.append(f"{name}: no column {' or '.join(lacking)}, needed for errors{has}")
        for column, count in table.get("unusable", {}).items():
            verb, they = ("has", "it is") if count == 1 else ("have", "they are")
            said.append(
                f"{name}: {count:,} of {rows:,} rows {verb} no usable {column}; {they} answered, but not compared"
            )
        if count := table.get("repeated"):
            said.append(
                f"{name}: {count:,} {'row is' if count == 1 else 'rows are'} repeated; each counts"
            )
    return said


def title_of(suite: str, quantity: str) -> str:
    """What a suite's quantity is called: a kernel's time needs no name of its own.

    >>> title_of("gemm", "kernel"), title_of("serving", "tpot")
    ('gemm', 'serving tpot')
    """
    return suite if quantity in (suite, "kernel", "latency") else f"{suite} {quantity}"


def is_answered(status: pd.Series) -> pd.Series:
    """Which rows have a prediction: ``ok`` or ``extrapolated``."""
    return ~status.str.startswith("unsupported")


def score(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Statistics of the relative error ``predicted / measured - 1`` for each value of ``by``.

    Args:
        rows: a table with :data:`SCORE_COLUMNS`.

    Returns:
        ``rows``, ``unsupported`` and ``extrapolated`` (shares of all rows), ``median``, ``mean``
        and ``p90`` of the absolute error, ``bias`` (median of the signed error), ``covered`` (share
        of answered rows whose measurement lies inside the band), and
        ``banded``: how many rows that is of.
    """
    answered = is_answered(rows["status"]) & rows["predicted"].notna()
    error = rows["predicted"] / rows["measured"] - 1.0
    measured, low, high = rows["measured"], rows["low"], rows["high"]
    wide = rows[by].assign(
        unsupported=~answered,
        extrapolated=rows["status"].str.startswith("extrapolated"),
        error=error.where(answered),
        absolute=error.abs().where(answered),
        covered=((low <= measured) & (measured <= high))
        .astype(float)
        .where(answered & low.notna()),
    )
    grouped = wide.groupby(by, sort=False, dropna=False)
    return pd.DataFrame(
        {
            "rows": grouped.size(),
            "unsupported": grouped["unsupported"].mean(),
            "extrapolated": grouped["extrapolated"].mean(),
            "median": grouped["absolute"].median(),
            "mean": grouped["absolute"].mean(),
            "p90": grouped["absolute"].quantile(0.9),
            "bias": grouped["error"].median(),
            "covered": grouped["covered"].mean(),
            "banded": grouped["covered"].count(),
        }
    ).reset_index()


def right_order(
    measured: np.ndarray, predicted: np.ndarray, least: float = 0.10
) -> tuple[int, int]:
    """Pairs that differ by more than ``least`` when measured, and how many of them the prediction
    puts in the same order.
    """
    a, b = np.triu_indices(len(measured), 1)
    ratio = np.maximum(measured[a], measured[b]) / np.minimum(measured[a], measured[b])
    far = ratio > 1.0 + least
    same = np.sign(measured[a] - measured[b]) == np.sign(predicted[a] - predicted[b])
    return int(far.sum()), int((same & far).sum())


def target_of(suite: str, quantity: str, group: str) -> Target | None:
    """The target that a group of rows is held to."""
    one = pd.DataFrame({"suite": [suite], "quantity": [quantity], "group": [group]})
    return next((target for target in TARGETS if target.covers(one).item()), None)


def grouped(rows: pd.DataFrame) -> pd.DataFrame:
    """:func:`score` by suite, quantity and group, with ``target_median``, ``target_p90`` and
    ``within_target``; worst first in a suite.

    ``within_target`` is of the errors on these very rows, in sample or not, and so no verdict on a
    target (:func:`judged`); it is ``None`` where there is no target or no row was answered.
    """
    found = score(rows, ["suite", "quantity", "group"])
    targets = [
        target_of(*key)
        for key in found[["suite", "quantity", "group"]]
        .astype(str)
        .itertuples(index=False, name=None)
    ]
    found["target_median"] = [np.nan if target is None else target.median for target in targets]
    found["target_p90"] = [np.nan if target is None else target.p90 for target in targets]
    found["within_target"] = [
        _met(row["median"], row["p90"], target)
        for row, target in zip(found.to_dict("records"), targets, strict=True)
    ]
    place = {suite: number for number, suite in enumerate(dict.fromkeys(found["suite"]))}
    keys = found["suite"].map(place)
    return (
        found.assign(_place=keys)
        .sort_values(["_place", "median"], ascending=[True, False])
        .drop(columns="_place")
        .reset_index(drop=True)
    )


def _met(median: float, p90: float, target: Target | None) -> bool | None:
    return (
        None
        if target is None or not np.isfinite(median)
        else bool(median <= target.median and p90 <= target.p90)
    )


IN_SAMPLE = (
    "Errors on rows that the calibrations were fitted on are in sample. Targets are asked of models and GPUs that no fit has seen: they "
    "are judged by the errors that the calibrations state of whole models, shapes and GPUs left out of their fits."
)


def judged(board: Scoreboard) -> pd.DataFrame:
    """A row a target: ``what``, ``asked``, ``found``, ``left_out`` in words, ``rows``, ``met``
    (``None``: nothing to judge), ``in_sample``.

    ``found`` is of the rows themselves. Where those are in sample, ``met`` goes by ``left_out``,
    which is what the calibrations say of whole models, shapes and GPUs left out of their fits, of
    ``left_out_rows`` rows, and empty where none says anything. Rows that are in sample and rows
    that are not are judged apart.
    """
    found = [
        *_errors_judged(board),
        *_answers_judged(board),
        *_orders_judged(board),
        *_bands_judged(board),
    ]
    return pd.DataFrame(found, columns=list(Judged._fields)).astype({"met": object})


class Judged(NamedTuple):
    """A target, as :func:`judged` has it."""

    what: str
    asked: str
    found: str
    left_out: str
    left_out_rows: int
    rows: int
    met: bool | None
    in_sample: bool


def _errors_judged(board: Scoreboard) -> Iterator[Judged]:
    stated = {row["what"]: row for row in board.left_out.to_dict("records")}
    known = board.is_in_sample(board.rows)
    for target in TARGETS:
        covered = target.covers(board.rows)
        for in_sample in (True, False):
            own = board.rows[covered & (known == in_sample)]
            if own.empty:
                continue
            scores = score(own.assign(all="all"), ["all"]).iloc[0].to_dict()
            asked = f"median {percent_of(target.median, digits=0)}, p90 {percent_of(target.p90, digits=0)}"
            other = stated.get(target.what) if in_sample else None
            judge = scores if other is None else other
            met = _met(judge["median"], judge["p90"], target)
            num_others = 0 if other is None else int(other["rows"])
            yield Judged(
                target.what,
                asked,
                _errors(scores, target),
                _errors(other, target),
                num_others,
                len(own),
                met,
                in_sample,
            )


def _answers_judged(board: Scoreboard) -> Iterator[Judged]:
    for suite, least in LEAST_ANSWERED.items():
        own = board.rows[board.rows["suite"] == suite]
        if len(own):
            share = float((is_answered(own["status"]) & own["predicted"].notna()).mean())
            asked, what = (
                f"at least {percent_of(least, digits=0)}",
                f"Rows of {suite} that are answered",
            )
            yield Judged(
                what,
                asked,
                percent_of(share, least),
                "",
                0,
                len(own),
                share >= least,
                board.in_sample(own),
            )


def _orders_judged(board: Scoreboard) -> Iterator[Judged]:
    known = {suite: board.in_sample(own) for suite, own in board.rows.groupby("suite")}
    for row in (
        board.order.groupby("suite", sort=False).sum().reset_index().to_dict("records")
        if len(board.order)
        else []
    ):
        if row["pairs"]:
            share, enough = row["right"] / row["pairs"], row["pairs"] >= LEAST_COMPARED
            what = f"Order of two deployments of {row['suite']} that differ by > 10 %"
            asked = f"right in at least {percent_of(LEAST_RIGHT_ORDER, digits=0)}"
            said = percent_of(share, LEAST_RIGHT_ORDER) + ("" if enough else _TOO_FEW)
            met = share >= LEAST_RIGHT_ORDER if enough else None
            yield Judged(
                what, asked, said, "", 0, row["pairs"], met, known.get(row["suite"], False)
            )


def _bands_judged(board: Scoreboard) -> Iterator[Judged]:
    for row in score(board.rows, ["suite"]).to_dict("records") if len(board.rows) else []:
        if row["banded"]:
            own, (low, high) = board.rows[board.rows["suite"] == row["suite"]], BANDS_HOLD
            enough = row["banded"] >= LEAST_COMPARED
            asked = f"in {percent_of(low, digits=0)} to {percent_of(high, digits=0)}, or as near as chance allows"
            said = percent_of(row["covered"], low, high) + ("" if enough else _TOO_FEW)
            met = (
                bands_hold(round(row["covered"] * row["banded"]), row["banded"]) if enough else None
            )
            yield Judged(
                f"80 % bands of {row['suite']} hold",
                asked,
                said,
                "",
                0,
                row["rows"],
                met,
                board.in_sample(own),
            )


_TOO_FEW = "; too few rows to say"


def bands_hold(inside: int, count: int) -> bool:
    """Whether ``inside`` of ``count`` measurements in their bands is what :data:`BANDS_HOLD` asks,
    with room for chance.

    >>> bands_hold(18, 20), bands_hold(10, 20)
    (True, False)
    >>> [bands_hold(inside, 1000) for inside in (900, 800, 600)]
    [False, True, False]
    """
    low, high = BANDS_HOLD
    return bool(
        binom.ppf(_BY_CHANCE / 2, count, low)
        <= inside
        <= binom.ppf(1 - _BY_CHANCE / 2, count, high)
    )


def tally(found: pd.DataFrame) -> str:
    """How many targets are met, by what they were judged on; empty where none was.

    Args:
        found: :func:`judged`.

    >>> columns = ["in_sample", "left_out", "met"]
    >>> left_out = [(True, "median 9 %", True), (True, "median 9 %", False)]
    >>> in_sample = [(True, "", True), (True, "", None)]
    >>> tally(pd.DataFrame([*left_out, *in_sample], columns=columns))
    'targets with models left out: 1 of 2 met; in sample only: 1 of 1 met'
    >>> tally(pd.DataFrame([(False, "", True)], columns=columns))
    'targets: 1 of 1 met'
    """
    has_verdict, known, has_left_out = (
        found["met"].notna(),
        found["in_sample"].astype(bool),
        found["left_out"] != "",
    )
    kinds = {
        "with models left out": known & has_left_out,
        "in sample only": known & ~has_left_out,
        "on other rows": ~known,
    }
    counted = {
        kind: found["met"][has_verdict & chosen].astype(bool) for kind, chosen in kinds.items()
    }
    said = {kind: f"{int(met.sum())} of {len(met)}" for kind, met in counted.items() if len(met)}
    if set(said) == {"on other rows"}:
        return f"targets: {said['on other rows']} met"
    told = "; ".join(f"{kind}: {count} met" for kind, count in said.items())
    return f"targets {told}" if told else ""


def _errors(scores: Mapping[Any, Any] | None, target: Target) -> str:
    if scores is None:
        return ""
    if not np.isfinite(scores["median"]):
        return "none answered"
    return f"median {percent_of(scores['median'], target.median)}, p90 {percent_of(scores['p90'], target.p90)}"


def percent_of(share: float, *limits: float, digits: int = 1) -> str:
    """A share with as many digits as show on which side of each limit it lies.

    >>> [percent_of(share, 0.25) for share in (0.2503, 0.25004, 0.25)]
    ['25.03 %', '25.004 %', '25.0 %']
    >>> percent_of(0.9, digits=0)
    '90 %'
    """
    return f"{100 * share:,.{digits_beside(share, *limits, digits=digits)}f} %"


def digits_beside(share: float, *limits: float, digits: int = 1) -> int:
    """How many digits of a share's percentage show on which side of each limit it lies, at least
    ``digits``.
    """
    most = digits + 4
    for tried in range(digits, most):
        shown = round(100 * share, tried)
        if all(_side(shown, round(100 * limit, 6)) == _side(share, limit) for limit in limits):
            return tried
    return digits


def _side(value: float, limit: float) -> int:
    return int(value > limit) - int(value < limit)


def reasons(rows: pd.DataFrame, status: str, most: int = 20) -> pd.DataFrame:
    """Why rows are ``unsupported`` or ``extrapolated``: ``suite``, ``reason`` and ``rows``, the
    most frequent first.

    Args:
        most: a suite with more reasons than this has them told apart without their numbers.
    """
    of_status = rows[rows["status"].str.startswith(status)]
    which = of_status.groupby(
        ["suite", "source", "subject", "quantity"], sort=False
    ).cumcount()  # of rows with the same id
    of_status = of_status.assign(which=which).drop_duplicates(
        ["suite", "source", "subject", "which"]
    )
    said = (
        of_status["status"]
        .str.removeprefix(status)
        .str.removeprefix(":")
        .str.strip()
        .replace("", "no reason given")
    )
    of_status = of_status.assign(reason=said)
    many = (
        of_status.groupby("suite")["reason"].transform("nunique") > most
        if len(of_status)
        else pd.Series(dtype=bool)
    )
    plain = [
        re.sub(r"\d[\d,.]*", "N", reason) if is_many else reason
        for reason, is_many in zip(of_status["reason"], many, strict=True)
    ]
    counted = (
        of_status.assign(reason=plain)
        .groupby(["suite", "reason"], sort=False)
        .size()
        .rename("rows")
        .reset_index()
    )
    return counted.sort_values("rows", ascending=False, kind="stable").reset_index(drop=True)


def worst(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """The answered rows of each suite and quantity that are furthest off, as a ratio either way."""
    answered = rows[is_answered(rows["status"]) & (rows["predicted"] > 0)]
    off = np.abs(
        np.log(answered["predicted"].to_numpy(float) / answered["measured"].to_numpy(float))
    )
    ranked = answered.assign(off=off).sort_values("off", ascending=False, kind="stable")
    return ranked.groupby(["suite", "quantity"], sort=False).head(most).reset_index(drop=True)


def order_of(suite: str, rows: pd.DataFrame, rivals: Sequence[Hashable]) -> dict[str, object]:
    """How many pairs among rows of the same ``rivals`` differ when measured, and how many are
    predicted in the same order.

    Args:
        rows: of one suite and quantity.
        rivals: for each row what it is compared within, such as a GPU, a model and a load.
    """
    answered = (is_answered(rows["status"]) & rows["predicted"].notna()).to_numpy(bool)
    number = {rival: place for place, rival in enumerate(dict.fromkeys(rivals))}
    codes = np.array([number[rival] for rival in rivals], dtype=int)
    pairs = right = 0
    for _, own in rows[answered].groupby(codes[answered], sort=False):
        far, same = right_order(own["measured"].to_numpy(float), own["predicted"].to_numpy(float))
        pairs, right = pairs + far, right + same
    return {"suite": suite, "pairs": pairs, "right": right}
