"""Rows of a table that one fit prices, and what is answered for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.calibration.fit import Fit
from simulator.validation import OK, Answers
from simulator.validation.error_bands import Band
from simulator.validation.extrapolation import Doubt, no_narrower, outside_of, settle

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
_UNANSWERED = "unsupported"


class Estimate(NamedTuple):
    """Seconds of some rows, and what their bands and statuses follow from."""

    seconds: Floats
    fit: Fit
    doubts: Sequence[Doubt]
    """Reasons to doubt all of these rows."""
    quantities: Mapping[str, Floats]
    """Sizes of the rows, by the names of the fit's domain."""
    doubts_of_some: Sequence[tuple[Doubt, NDArray[np.bool_]]] = ()
    """Further reasons, each with the rows that it holds for."""
    similar: tuple[Fit, Sequence[Doubt]] | None = None
    """Fit of a measured family of GPUs: an assumed entry's band is no narrower than this one's."""
    band: Band | None = None
    """Band of the rows where it is not the fit's."""


def words(table: pd.DataFrame, *names: str, **absent: str) -> pd.DataFrame:
    """Columns as text, and those of ``absent`` filled with their value where the table lacks
    them.
    """
    return pd.DataFrame(
        {
            name: table[name].map(str) if name in table.columns else absent[name]
            for name in (*names, *absent)
        },
        index=table.index,
        dtype=object,
    )


def group_rows(keys: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], Places]]:
    """Distinct rows of ``keys`` in order of appearance, each with the places where it stands."""
    codes, found = pd.factorize(pd.MultiIndex.from_frame(keys))
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(found)))
    yield from zip(found, np.split(order, ends[:-1]), strict=False)


def name_group(
    answers: Answers, places: Places, name: str, reasons: str | Sequence[str] | NDArray[np.object_]
) -> NDArray[np.bool_]:
    """Name the group of some rows and refuse those that have a reason.

    Args:
        reasons: why rows cannot be priced, one for each or one for all; empty where they can.

    Returns:
        Which rows can be priced.
    """
    refusals = [reasons] * len(places) if isinstance(reasons, str) else reasons
    for place, reason in zip(places, refusals, strict=True):
        answers.group[place] = name
        if reason:
            answers.status[place] = f"{_UNANSWERED}: {reason}"
    return np.array([not reason for reason in refusals], dtype=bool)


def fill(answers: Answers, places: Places, estimate: Estimate, measure: int = 0) -> None:
    """Write an estimate into the answers. A row with several measures is as sure as its least sure
    one.
    """
    fit, seconds = estimate.fit, estimate.seconds
    statuses, wider = settle(
        len(places),
        estimate.doubts,
        outside_of(fit, **estimate.quantities),
        estimate.doubts_of_some,
    )
    low, high = (estimate.band or Band.from_fit(fit)).spread(seconds, wider)
    if fit.kind == "assumed" and estimate.similar is not None:
        other, doubts = estimate.similar
        outside = outside_of(other, **estimate.quantities)
        low, high = no_narrower((low, high), seconds, other, doubts, outside)
    for column, values in zip(
        (answers.seconds, answers.low, answers.high), (seconds, low, high), strict=True
    ):
        column[places, measure] = values
    for place, status in zip(places, statuses, strict=True):
        if status != OK or answers.status[place] == _UNANSWERED:
            answers.status[place] = status


def unknown_gpu(gpu: str) -> str:
    """Reason to refuse a GPU that no calibration is of."""
    return f"no calibrated accelerator '{gpu}'"


def unknown_name(what: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Reason to refuse a name that is none of ``known``."""
    return f"no {what} '{name}'; known: {', '.join(known)}"
