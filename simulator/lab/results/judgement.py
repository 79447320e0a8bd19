"""Verdicts on the targets of a scoreboard's predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from simulator.lab.results.scores import (
    BANDS_HOLD,
    LEAST_ANSWERED,
    LEAST_COMPARED,
    LEAST_RIGHT_ORDER,
    TARGETS,
    Scoreboard,
    Target,
    bands_hold,
    is_answered,
    is_met,
    score,
)

IN_SAMPLE = (
    "Errors on rows that the calibrations were fitted on are in sample. "
    "Targets are asked of models and GPUs that no fit has seen: "
    "they are judged by the errors that the calibrations state of whole models, "
    "shapes and GPUs left out of their fits."
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


def percent_of(share: float, *limits: float, digits: int = 1) -> str:
    """Write a share with as many digits as show on which side of each limit it lies.

    >>> [percent_of(share, 0.25) for share in (0.2503, 0.25004, 0.25)]
    ['25.03 %', '25.004 %', '25.0 %']
    >>> percent_of(0.9, digits=0)
    '90 %'
    """
    return f"{100 * share:,.{digits_beside(share, *limits, digits=digits)}f} %"


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
