"""Kernel and exchange timings, one family a file: which columns it reads, how a row is priced,
which coefficients the price has, and how they are fitted.

``moesim validate kernels FAMILY TABLE`` takes the family of that name, and ``moesim calibrate
published FOLDER`` fits all of them. Tables have the columns that NVIDIA's aiconfigurator-core
0.12.0 (Apache-2.0) writes, since whoever times kernels for a planner has them. Files that begin
with ``_`` hold what families share: ``_answering`` and ``_fitting`` all of them, the others those
of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from simulator.validation import Answers, Measure


class KernelFamily(Protocol):
    """A file in this folder: a frozen pydantic model without fields."""

    columns: tuple[str, ...]
    """Columns that a table must have; the measured ones may be missing."""
    measures: tuple[Measure, ...]
    """Columns that hold what was measured."""
    calibrates: str
    """Table of a calibration that the fit fills, such as ``gemm``."""
    sources: tuple[str, ...]
    """Files of the measurements that the shipped calibrations are fitted on."""

    def answer(self, table: pd.DataFrame) -> Answers:
        """Price every row, vectorised where rows are many: 100,000 rows take seconds. Measured
        columns are not looked at.
        """
        ...

    def fit(self, tables: Sequence[pd.DataFrame]) -> dict[str, dict[str, Any]]:
        """Fit the coefficients: entries of ``calibrates`` by calibration (``hopper``) and engine,
        as nested dictionaries for TOML. Each says how far off it is on shapes that were left out.

        Args:
            tables: of ``sources``, in their order. A GPU or format that they lack has no entry.
        """
        ...


@runtime_checkable
class _MeasuresByTable(Protocol):
    """A family whose tables differ in what they measure; its ``measures`` are those that every
    table has, often none.
    """

    def measures_of(self, table: pd.DataFrame, where: str) -> tuple[Measure, ...]:
        """Measures of ``table``, by its columns.

        Args:
            where: what errors call it.

        Raises:
            UserError: if it is none of the tables that this family reads.
        """
        ...


@runtime_checkable
class _SeveralLayouts(Protocol):
    """A family that reads several kinds of table, told apart by their columns."""

    layouts: tuple[tuple[str, ...], ...]
    """The columns that each kind must have."""


def layouts_of(family: KernelFamily) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each kind of table that a family reads: columns that it must have, and those that are
    measured.
    """
    kinds = family.layouts if isinstance(family, _SeveralLayouts) else (family.columns,)
    return [
        (kind, tuple(m.column for m in measures_of(family, pd.DataFrame(columns=list(kind)))))
        for kind in kinds
    ]


def measures_of(
    family: KernelFamily, table: pd.DataFrame, where: str = "table"
) -> tuple[Measure, ...]:
    """Measures that ``family`` answers for ``table``: columns of its ``Answers``, in order.

    Args:
        where: what errors call the table.
    """
    return (
        family.measures_of(table, where)
        if isinstance(family, _MeasuresByTable)
        else family.measures
    )
