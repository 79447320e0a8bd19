"""Kernel and exchange timings, one family a file: which columns it reads, how a row is priced,
which coefficients the price has, and how they are fitted.

``moesim validate kernels FAMILY TABLE`` takes the family of that name, and ``moesim calibrate
published FOLDER`` fits all of them. Tables have the columns that NVIDIA's aiconfigurator-core
0.12.0 (Apache-2.0) writes, since whoever times kernels for a planner has them. Files that begin
with ``_`` hold what families share: ``_fitting`` all of them, the others those of one kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats
from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration import Calibration
from simulator.config.calibration.fit import Fit
from simulator.lab.validation import OK, Answers, Measure, require
from simulator.lab.validation.extrapolation import Band, Doubt, no_narrower, outside_of, settle
from simulator.lab.validation.hardware import find_calibrated

COMMAND = "moesim calibrate published"
"""Command that fits calibrations on measurements."""
SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
"""Source of the timings of kernels and of the serving points that calibrations are fitted on."""

Places = NDArray[np.intp]
Tables = Mapping[str, Mapping[str, Mapping[str, object]]]
"""One table of each calibration: its entries by calibration and engine."""
_UNANSWERED = "unsupported"


class Estimate(NamedTuple):
    """Seconds of some rows, and what their bands and statuses follow from."""

    seconds: Floats
    fit: Fit
    doubts: Sequence[Doubt]
    """Reasons to doubt all of these rows."""
    quantities: Mapping[str, Floats]
    """Sizes of the rows, by the names of the fit's domain."""
    doubts_of_some: Sequence[tuple[Doubt, Bools]] = ()
    """Further reasons, each with the rows that it holds for."""
    similar: tuple[Fit, Sequence[Doubt]] | None = None
    """Fit of a measured family of GPUs: an assumed entry's band is no narrower than this one's."""
    band: Band | None = None
    """Band of the rows where it is not the fit's."""


class Part(NamedTuple):
    """Rows of a table that one entry of a calibration prices: a column of its answers."""

    places: Places
    gpu: str
    """Name of the GPU in the table."""
    engine: str
    group: str
    """Name that errors are reported by."""
    refused: str | Sequence[str] | NDArray[np.object_]
    """Why rows of a calibrated GPU cannot be priced, one for each or one for all; empty where they
    can."""
    price: Callable[[AcceleratorSpec, Calibration, Places], Estimate]
    """Estimate of the rows at some places of the table."""
    measure: int = 0


class KernelFamily(Frozen, ABC):
    """A file in this folder: a frozen pydantic model without fields."""

    columns: ClassVar[tuple[str, ...]]
    """Columns that a table must have; the measured ones may be missing."""
    layouts: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Columns that each kind of table must have, of a family that reads several kinds."""
    measures: ClassVar[tuple[Measure, ...]]
    """Columns that hold what was measured."""
    calibrates: ClassVar[str]
    """Table of a calibration that the fit fills, such as ``gemm``."""
    sources: ClassVar[tuple[str, ...]]
    """Files of the measurements that the shipped calibrations are fitted on."""

    @abstractmethod
    def parts(self, table: pd.DataFrame) -> Iterable[Part]:
        """Rows of a table by the entries of calibrations that price them, vectorised where rows are
        many: 100,000 rows take seconds. Measured columns are not looked at.
        """

    @abstractmethod
    def fit(self, tables: Sequence[pd.DataFrame]) -> Tables:
        """Fit the coefficients: entries of ``calibrates`` by calibration (``hopper``) and engine,
        as nested dictionaries for TOML. Each says how far off it is on shapes that were left out.

        Args:
            tables: of ``sources``, in their order. A GPU or format that they lack has no entry.
        """

    def answer(self, table: pd.DataFrame) -> Answers:
        """Price every row.

        Raises:
            UserError: if the table lacks columns.
        """
        require(table, self.columns, f"{type(self).__name__.lower()} table")
        answers = Answers.make_unsupported(len(table), len(self.measures_of(table)))
        for part in self.parts(table):
            _answer_part(answers, part)
        return answers

    def measures_of(self, table: pd.DataFrame, where: str = "table") -> tuple[Measure, ...]:
        """Measures that the family answers for ``table``: columns of its ``Answers``, in order.

        Args:
            where: what errors call the table.

        Raises:
            UserError: if it is none of the tables that this family reads.
        """
        return self.measures

    def list_layouts(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """For each kind of table that the family reads: columns that it must have, and those that
        are measured.
        """
        return [
            (kind, tuple(m.column for m in self.measures_of(pd.DataFrame(columns=list(kind)))))
            for kind in self.layouts or (self.columns,)
        ]


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


def _answer_part(answers: Answers, part: Part) -> None:
    """Name the group of a part's rows, refuse those that cannot be priced, and price the others. A
    row with several measures is as sure as its least sure one.
    """
    found = find_calibrated(part.gpu, part.engine)
    refused = unknown_gpu(part.gpu) if found is None else part.refused
    reasons = [refused] * len(part.places) if isinstance(refused, str) else refused
    for place, reason in zip(part.places, reasons, strict=True):
        answers.group[place] = part.group
        if reason:
            answers.status[place] = f"{_UNANSWERED}: {reason}"
    places = part.places[[not reason for reason in reasons]]
    if found is None or not len(places):
        return
    estimate = part.price(*found, places)
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
        column[places, part.measure] = values
    for place, status in zip(places, statuses, strict=True):
        if status != OK or answers.status[place] == _UNANSWERED:
            answers.status[place] = status


def unknown_gpu(gpu: str) -> str:
    """Reason to refuse a GPU that no calibration is of."""
    return f"no calibrated accelerator '{gpu}'"


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Reason to refuse a name that is none of ``known``."""
    return f"no {what} '{name}'; known: {', '.join(known)}"
