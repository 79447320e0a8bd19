"""Scores of predictions against measurements: one table for every suite, and summary statistics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.results.results_folder import ResultsFolder

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
