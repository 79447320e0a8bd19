"""Kernel and exchange timings, one family a file: which columns it reads, how a row is priced,
which coefficients the price has, and how they are fitted.

``moesim validate kernels FAMILY TABLE`` takes the family of that name, and ``moesim calibrate
published FOLDER`` fits all of them. Tables have the columns that NVIDIA's aiconfigurator-core
0.12.0 (Apache-2.0) writes, since whoever times kernels for a planner has them. Files that begin
with ``_`` hold what families share: ``_answering`` and ``_fitting`` all of them, the others those
of one kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import pandas as pd

from simulator.base.frozen import Frozen
from simulator.lab.validation import Answers, Measure, require
from simulator.lab.validation.kernels._answering import Part, answer_part

COMMAND = "moesim calibrate published"
"""Command that fits calibrations on measurements."""
SOURCE = "NVIDIA aiconfigurator-core 0.12.0, Apache-2.0"
"""Source of the timings of kernels and of the serving points that calibrations are fitted on."""


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
    def fit(self, tables: Sequence[pd.DataFrame]) -> dict[str, dict[str, Any]]:
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
            answer_part(answers, part)
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
