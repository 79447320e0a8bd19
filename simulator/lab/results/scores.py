"""Scores of predictions against measurements: one table for every suite, and summary statistics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.formats import UNDEFINED
from simulator.results.results_folder import (
    Content,
    ResultsFolder,
    TextTable,
    Verdict,
    make_verdict,
)

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
"""Columns of the long table, which has one row for each measured quantity.

``group`` is what errors are reported by (a GPU and a dtype, an engine), ``subject`` names the row
for people. ``predicted``, ``low`` and ``high`` are in the unit of ``measured``, and not a number
where ``status`` begins with ``unsupported``.
"""


@dataclass(frozen=True)
class Scoreboard(ResultsFolder):
    """Predictions beside measurements: rows, fits, the order of models, and how they were made."""

    run: dict[str, Any]
    """Command, versions, time, and the tables that were read and those that were not, with
    reasons."""
    rows: pd.DataFrame
    """Rows with :data:`SCORE_COLUMNS`, and ``source``: the file of a row."""
    fits: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Errors that the calibrations state, a row for each fit."""
    order: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Order of deployments: ``suite``, ``pairs`` compared and ``right`` ones among them."""
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Errors that the calibrations state for models, shapes and GPUs left out of their fits:
    ``what`` of a target, ``rows``, ``fits``, ``missed``, ``median`` and ``p90``."""
    unseen: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Rows that were answered with their whole model, GPU or release left out of the fits, with
    ``case`` (``model``, ``gpu`` or ``release``) and ``without`` besides the columns of ``rows``."""
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Errors of earlier runs and this one, with ``date``, ``revision`` and ``what``, where a
    history is kept."""

    writer = "moesim validate"
    files = {"rows": "rows.parquet"}

    @property
    def verdict(self) -> Verdict:
        """Errors of all answers, targets that are missed, and rows that are not compared."""
        return make_verdict([_head(self), *_list_missed(self), *remarks(self)])

    def list_tables(self) -> list[TextTable]:
        """Targets, errors by group, and why rows have no answer or an extrapolated one."""
        if self.rows.empty:
            return []
        why = (_list_reasons(self, status, lead) for status, lead in _STATUSES.items())
        return [one for one in (_list_targets(self), *_list_errors(self), *why) if one.rows[1:]]

    def list_others(self) -> dict[str, Content]:
        """Scores, targets and reasons, and rows of groups that were left out of the fits."""
        scores = score_groups(self.rows)
        floats = scores.select_dtypes(float).columns
        scores[floats] = scores[floats].map(lambda value: float(f"{value:.6g}"))
        why = [reasons(self.rows, one).assign(status=one) for one in _STATUSES]
        found: dict[str, Content] = {
            "scores.csv": scores,
            "targets.csv": judge_targets(self),
            "reasons.csv": pd.concat(why, ignore_index=True),
        }
        return found | ({"left_out.parquet": self.unseen} if len(self.unseen) else {})

    def is_in_sample(self, rows: pd.DataFrame) -> pd.Series:
        """Whether each of these rows is of a table that the calibrations were fitted on."""
        known = {table["source"] for table in self.run.get("tables", []) if table.get("in_sample")}
        return (
            rows["source"].isin(known)
            if "source" in rows.columns
            else pd.Series(data=False, index=rows.index)
        )

    def in_sample(self, rows: pd.DataFrame | None = None) -> bool:
        """Whether any of these rows, by default of all rows, is in sample."""
        return bool(self.is_in_sample(self.rows if rows is None else rows).any())


def remarks(board: Scoreboard) -> list[str]:
    """Write sentences on rows that are answered but not compared, for each table and column, and on
    rows that count more than once.
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
                f"{name}: {count:,} of {rows:,} rows {verb} no usable {column}; {they} "
                "answered, but not compared"
            )
        if count := table.get("repeated"):
            said.append(
                f"{name}: {count:,} {'row is' if count == 1 else 'rows are'} repeated; each counts"
            )
    return said


def title_of(suite: str, quantity: str) -> str:
    """Name a suite's quantity: a kernel's time needs no name of its own.

    >>> title_of("gemm", "kernel"), title_of("serving", "tpot")
    ('gemm', 'serving tpot')
    """
    return suite if quantity in (suite, "kernel", "latency") else f"{suite} {quantity}"


def is_answered(status: pd.Series) -> pd.Series:
    """Whether each row has a prediction: ``ok`` or ``extrapolated``."""
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
    """Count the pairs that differ by more than ``least`` when measured, and those that the
    prediction puts in the same order.
    """
    a, b = np.triu_indices(len(measured), 1)
    ratio = np.maximum(measured[a], measured[b]) / np.minimum(measured[a], measured[b])
    far = ratio > 1.0 + least
    same = np.sign(measured[a] - measured[b]) == np.sign(predicted[a] - predicted[b])
    return int(far.sum()), int((same & far).sum())


def score_groups(rows: pd.DataFrame) -> pd.DataFrame:
    """Score by suite, quantity and group, with ``target_median``, ``target_p90`` and
    ``within_target``; worst first in a suite.

    ``within_target`` is about the errors on these very rows, in sample or not, and so no verdict on
    a target (:func:`judge_targets`); it is ``None`` where there is no
    target or no row was answered.
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
        is_met(row["median"], row["p90"], target)
        for row, target in zip(found.to_dict("records"), targets, strict=True)
    ]
    suites = pd.factorize(found["suite"])[0]
    order = np.lexsort((-found["median"].to_numpy(float), suites))
    return found.iloc[order].reset_index(drop=True)


def list_suites(board: Scoreboard) -> Iterator[tuple[str, dict[Any, Any], pd.DataFrame]]:
    """Each suite's quantity: its title, its scores, and those of its groups, the worst first."""
    by_group = score_groups(board.rows)
    for total in score(board.rows, ["suite", "quantity"]).to_dict("records"):
        is_own = by_group["suite"].eq(total["suite"]) & by_group["quantity"].eq(total["quantity"])
        is_known = board.in_sample(board.rows[board.rows["suite"] == total["suite"]])
        title = title_of(total["suite"], total["quantity"]) + (", in sample" if is_known else "")
        yield title, total, by_group[is_own]


def reasons(rows: pd.DataFrame, status: str, most: int = 20) -> pd.DataFrame:
    """Count the reasons why rows are ``unsupported`` or ``extrapolated``: ``suite``, ``reason`` and
    ``rows``, the most frequent first.

    Args:
        most: number of reasons of a suite above which they are merged by leaving out their numbers.
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
    """Find the answered rows of each suite and quantity with the largest errors, as a ratio either
    way.
    """
    answered = rows[is_answered(rows["status"]) & (rows["predicted"] > 0)]
    off = np.abs(
        np.log(answered["predicted"].to_numpy(float) / answered["measured"].to_numpy(float))
    )
    ranked = answered.assign(off=off).sort_values("off", ascending=False, kind="stable")
    return ranked.groupby(["suite", "quantity"], sort=False).head(most).reset_index(drop=True)


def order_of(suite: str, rows: pd.DataFrame) -> dict[str, object]:
    """Count the pairs among rows of the same ``rival`` that differ when measured, and those
    predicted in the same order.

    Args:
        rows: of one suite; those whose rival is empty are compared with nothing.
    """
    pairs = right = 0
    if "rival" in rows.columns:
        answered = is_answered(rows["status"]) & rows["predicted"].notna()
        compared = rows[answered & rows["rival"].fillna("").ne("")]
        for _, own in compared.groupby("rival", sort=False):
            far, same = right_order(
                own["measured"].to_numpy(float), own["predicted"].to_numpy(float)
            )
            pairs, right = pairs + far, right + same
    return {"suite": suite, "pairs": pairs, "right": right}


# Accuracy targets of predictions, and further requirements.


MOE, DENSE = "MoE", "dense"
"""Words of a group that say what kind of model its rows are of."""


class Target(NamedTuple):
    """Accuracy target: limits of the absolute relative error."""

    what: str
    suites: tuple[str, ...]
    median: float
    """Limit of the median error."""
    p90: float
    """Limit of the 90th percentile of the errors."""
    quantity: str = ""
    """Quantity of the rows that the target is about; empty for all."""
    word: str = ""
    """Word in the group of the rows that the target is about; empty for all."""

    def select_rows(self, rows: pd.DataFrame) -> pd.Series:
        """Whether the target is about each row of a table with ``suite``, ``quantity`` and
        ``group``.
        """
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
"""Targets for models and GPUs that no calibration has seen; they are not to be moved."""
LEAST_RIGHT_ORDER = 0.90
"""Share of pairs of deployments, more than 10 % apart, whose predicted order must be right."""
BANDS_HOLD = (0.75, 0.85)
"""Share of measurements that must lie inside their 80 % bands."""
LEAST_COMPARED = 20
"""Number of pairs, or of measurements with a band, below which a share of them says nothing."""
_BY_CHANCE = 0.05
"""Probability of wrongly calling a right band wrong, were rows independent of each other."""
LEAST_ANSWERED = {"serving": 0.90}
"""Share of a suite's rows that must have a prediction."""


def target_of(suite: str, quantity: str, group: str) -> Target | None:
    """Find the target of a group of rows."""
    one = pd.DataFrame({"suite": [suite], "quantity": [quantity], "group": [group]})
    return next((target for target in TARGETS if target.select_rows(one).item()), None)


def is_met(median: float, p90: float, target: Target | None) -> bool | None:
    """Whether errors are within a target; ``None`` where there is none, or nothing to judge."""
    return (
        None
        if target is None or not np.isfinite(median)
        else bool(median <= target.median and p90 <= target.p90)
    )


def bands_hold(inside: int, count: int) -> bool:
    """Whether ``inside`` of ``count`` measurements in their bands satisfy :data:`BANDS_HOLD`,
    allowing for chance.

    >>> bands_hold(18, 20), bands_hold(10, 20)
    (True, False)
    >>> [bands_hold(inside, 1000) for inside in (900, 800, 600)]
    [False, True, False]
    """
    from scipy.stats import binom  # half a second, which a run needs not

    low, high = BANDS_HOLD
    return bool(
        binom.ppf(_BY_CHANCE / 2, count, low)
        <= inside
        <= binom.ppf(1 - _BY_CHANCE / 2, count, high)
    )


# Verdicts on the targets.


IN_SAMPLE = (
    "Errors are of |predicted / measured - 1|; on rows that the calibrations were fitted on, they "
    "are in sample. Targets are asked of models and GPUs that no fit has seen: they are judged by "
    "the errors that the calibrations state of whole models, shapes and GPUs left out of their "
    "fits, put together by rows; of serving points, by those of aggregated ones."
)


def judge_targets(board: Scoreboard) -> pd.DataFrame:
    """Judge every target, a row each: ``what``, ``asked``, ``found``, ``left_out`` in words,
    ``rows``, ``met`` (``None``: nothing to judge), ``in_sample``.

    ``found`` is about the rows themselves. Where those are in sample, ``met`` is decided by
    ``left_out``: the errors that the calibrations state for whole models, shapes and GPUs left out
    of their fits, from ``left_out_rows`` rows; it is empty where none are stated. Rows in sample
    and rows out of sample are judged apart.
    """
    found = [
        *_errors_judged(board),
        *_answers_judged(board),
        *_orders_judged(board),
        *_bands_judged(board),
    ]
    return pd.DataFrame(found, columns=[field.name for field in fields(Judged)]).astype(
        {"met": object}
    )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Verdict on a target, a row of :func:`judge_targets`."""

    what: str
    asked: str
    found: str
    left_out: str = ""
    left_out_rows: int = 0
    rows: int
    met: bool | None
    in_sample: bool


def _errors_judged(board: Scoreboard) -> Iterator[Judged]:
    stated = {row["what"]: row for row in board.left_out.to_dict("records")}
    known = board.is_in_sample(board.rows)
    for target in TARGETS:
        covered = target.select_rows(board.rows)
        for in_sample in (True, False):
            own = board.rows[covered & (known == in_sample)]
            if own.empty:
                continue
            scores = score(own.assign(all="all"), ["all"]).iloc[0].to_dict()
            other = stated.get(target.what) if in_sample else None
            judge = other or scores
            limits = [percent_of(limit, digits=0) for limit in (target.median, target.p90)]
            yield Judged(
                what=target.what,
                asked="median {}, p90 {}".format(*limits),
                found=_errors(scores, target),
                left_out=_errors(other, target),
                left_out_rows=int(other["rows"]) if other else 0,
                rows=len(own),
                met=is_met(judge["median"], judge["p90"], target),
                in_sample=in_sample,
            )


def _answers_judged(board: Scoreboard) -> Iterator[Judged]:
    for suite, least in LEAST_ANSWERED.items():
        own = board.rows[board.rows["suite"] == suite]
        if len(own):
            share = float((is_answered(own["status"]) & own["predicted"].notna()).mean())
            yield Judged(
                what=f"Rows of {suite} that are answered",
                asked=f"at least {percent_of(least, digits=0)}",
                found=percent_of(share, least),
                rows=len(own),
                met=share >= least,
                in_sample=board.in_sample(own),
            )


def _orders_judged(board: Scoreboard) -> Iterator[Judged]:
    known = {suite: board.in_sample(own) for suite, own in board.rows.groupby("suite")}
    for suite, row in board.order.groupby("suite", sort=False) if len(board.order) else ():
        pairs = int(row["pairs"].sum())
        if pairs:
            share, enough = row["right"].sum() / pairs, pairs >= LEAST_COMPARED
            yield Judged(
                what=f"Order of two deployments of {suite} that differ by > 10 %",
                asked=f"right in at least {percent_of(LEAST_RIGHT_ORDER, digits=0)}",
                found=percent_of(share, LEAST_RIGHT_ORDER) + ("" if enough else _TOO_FEW),
                rows=pairs,
                met=bool(share >= LEAST_RIGHT_ORDER) if enough else None,
                in_sample=known.get(suite, False),
            )


def _bands_judged(board: Scoreboard) -> Iterator[Judged]:
    low, high = BANDS_HOLD
    for row in score(board.rows, ["suite"]).to_dict("records") if len(board.rows) else []:
        banded, covered = row["banded"], row["covered"]
        if banded:
            enough, ends = (
                banded >= LEAST_COMPARED,
                [percent_of(end, digits=0) for end in BANDS_HOLD],
            )
            yield Judged(
                what=f"80 % bands of {row['suite']} hold",
                asked=f"in {' to '.join(ends)}, or as near as chance allows",
                found=percent_of(covered, low, high) + ("" if enough else _TOO_FEW),
                rows=row["rows"],
                met=bands_hold(round(covered * banded), banded) if enough else None,
                in_sample=board.in_sample(board.rows[board.rows["suite"] == row["suite"]]),
            )


_TOO_FEW = "; too few rows to say"


def tally(found: pd.DataFrame) -> str:
    """Count the targets that are met, by the rows they were judged on; empty where none was.

    Args:
        found: :func:`judge_targets`.

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
    return (
        f"median {percent_of(scores['median'], target.median)}, "
        f"p90 {percent_of(scores['p90'], target.p90)}"
    )


def percent_of(share: float, *limits: float, digits: int = 1, signed: bool = False) -> str:
    """Write a share or an error with as many digits as show on which side of each limit it lies; a
    dash where it is not a number.

    >>> [percent_of(share, 0.25) for share in (0.2503, 0.25004, 0.25)]
    ['25.03 %', '25.004 %', '25.0 %']
    >>> percent_of(0.9, digits=0), percent_of(0.5, signed=True)
    ('90 %', '+50.0 %')
    """
    if not np.isfinite(share):
        return UNDEFINED
    sign, digits = "+" if signed else "", digits_beside(share, *limits, digits=digits)
    return f"{100 * share:{sign},.{digits}f} %".replace("-", "\N{MINUS SIGN}")


def digits_beside(share: float, *limits: float, digits: int = 1) -> int:
    """Number of digits of a share's percentage that show on which side of each limit it lies, at
    least ``digits``.
    """
    most = digits + 4
    for tried in range(digits, most):
        shown = round(100 * share, tried)
        if all(_side(shown, round(100 * limit, 6)) == _side(share, limit) for limit in limits):
            return tried
    return digits


def _side(value: float, limit: float) -> int:
    return int(value > limit) - int(value < limit)


# Findings and tables for people.


_MOST_SHOWN = 25
"""Groups of a suite, and reasons of a status, that a table shows."""
_MOST_MISSED = 6
_STATUSES = {
    "unsupported": "Rows without an answer, by reason.",
    "extrapolated": "Rows answered from outside the measured domain, with wider bands, by reason.",
}
_ERRORS_LEAD = (
    "The groups of each suite, the largest median error first. Median, mean and p90 (the 90th "
    "percentile) are of the absolute error |predicted / measured - 1|. Bias: median of predicted / "
    "measured - 1, above 0 where predictions are too large. In band: share of measurements between "
    "a prediction's low and high, which are meant to hold 80 %. Target: median / p90. Within: "
    "whether the errors on these very rows are within it, in sample or not."
)


def _head(board: Scoreboard) -> str:
    """The finding in a sentence."""
    rows = board.rows
    answered = rows[rows["predicted"].notna() & is_answered(rows["status"].astype(str))]
    if answered.empty:
        return "No measured row was answered, so there is no error to show."
    error = float(np.median(np.abs(answered["predicted"] / answered["measured"] - 1)))
    found = tally(judge_targets(board))
    count, within = f"{len(answered):,} predictions", percent_of(error)
    said = f"Half of {count} are within {within} of what was measured"
    if board.in_sample():
        said += ", in sample" if board.is_in_sample(rows).all() else ", partly in sample"
    return f"{said}; {found}." if found else f"{said}."


def _list_missed(board: Scoreboard) -> list[str]:
    """The targets that are not met, by the errors that they are judged by."""
    missed = []
    for row in judge_targets(board).to_dict("records") if len(board.rows) else ():
        if row["met"] is False:
            found = row["found"]
            if row["left_out"] and row["in_sample"]:
                others = f"{row['left_out_rows']:,} rows with models left out"
                found = f"{row['left_out']} of {others} ({found} in sample)"
            missed.append(f"Missed: {row['what']}: {found}; asked: {row['asked']}.")
    if (more := len(missed) - _MOST_MISSED) > 0:
        missed[_MOST_MISSED:] = [f"{more} further targets are missed; see below."]
    return missed


def _list_targets(board: Scoreboard) -> TextTable:
    rows = [["Target", "Met", "Models left out", "On these rows", "Asked", "Rows"]]
    for row in judge_targets(board).to_dict("records"):
        left_out = UNDEFINED
        if row["left_out"]:
            left_out = f"{row['left_out']}, of {row['left_out_rows']:,} rows"
        found = row["found"] + (" (in sample)" if row["in_sample"] else "")
        rows.append([row["what"], _say(row["met"]), left_out, found, row["asked"]])
        rows[-1].append(f"{row['rows']:,}")
    return TextTable("Targets", rows, IN_SAMPLE)


def _list_errors(board: Scoreboard) -> Iterator[TextTable]:
    """A table for each suite's quantity."""
    titles = ["Rows", "Median", "Mean", "p90", "Bias", "No answer", "Extrapolated", "In band"]
    no_target = {"target_median": np.nan, "target_p90": np.nan, "within_target": None}
    for title, total, groups in list_suites(board):
        own = groups.to_dict("records")
        rows = [[title, *titles, "Target", "Within"]]
        rows += [_list_cells(row["group"] or "all", row) for row in own[:_MOST_SHOWN]]
        if (more := len(own) - _MOST_SHOWN) > 0:
            rows.append([f"{more} groups with smaller errors", *[""] * len(rows[0][1:])])
        if len(own) > 1:
            rows.append(_list_cells("all", total | no_target))
        yield TextTable("Errors by group", rows, _ERRORS_LEAD)


def _list_cells(name: str, row: Mapping[Any, Any]) -> list[str]:
    limits = row["target_median"], row["target_p90"]
    median, p90 = ((limit,) if np.isfinite(limit) else () for limit in limits)
    target = " / ".join(percent_of(limit, digits=0) for limit in (*median, *p90))
    return [
        *(name, f"{row['rows']:,}", percent_of(row["median"], *median), percent_of(row["mean"])),
        *(percent_of(row["p90"], *p90), percent_of(row["bias"], signed=True)),
        *(percent_of(row[key], digits=0) for key in ("unsupported", "extrapolated", "covered")),
        *(target or UNDEFINED, _say(row["within_target"])),
    ]


def _list_reasons(board: Scoreboard, status: str, lead: str) -> TextTable:
    found = reasons(board.rows, status)
    rows = [["Why", "Suite", "Rows"]]
    shown = found.head(_MOST_SHOWN).to_dict("records")
    rows += [[row["reason"], row["suite"], f"{row['rows']:,}"] for row in shown]
    if len(rest := found[_MOST_SHOWN:]):
        rows.append([f"{len(rest)} further reasons", "", f"{rest['rows'].sum():,}"])
    return TextTable(f"Why rows are {status}", rows, lead)


def _say(met: bool | None) -> str:
    return UNDEFINED if met is None else "yes" if met else "no"
