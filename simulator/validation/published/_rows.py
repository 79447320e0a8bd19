"""Rows of a published table, read strictly: each is a frozen model whose fields are its columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Annotated, Any, ClassVar

import pandas as pd
from pydantic import AfterValidator, ConfigDict, PositiveInt

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, validate
from simulator.base.progress import Progress
from simulator.validation.hardware import accelerator_name
from simulator.validation.published import FIGURE_COLUMNS, Reply
from simulator.validation.published._scores import figures
from simulator.validation.published._sweep import answer_cases
from simulator.validation.serving.models import find_model
from simulator.validation.tables import Table


def _find_model(text: str) -> str:
    found = find_model(text)
    if found is None:
        raise UserError(f"no model file for '{text}'")
    return found.model


def _find_accelerator(text: str) -> str:
    name = accelerator_name(text)
    if name is None:
        raise UserError(f"no accelerator file for '{text}'")
    return name


ModelName = Annotated[str, AfterValidator(_find_model)]
"""Model file, or a repository that one lists."""
GpuName = Annotated[str, AfterValidator(_find_accelerator)]
"""Accelerator file, or its name as ``nvidia-smi`` writes it."""
Count = PositiveInt


class Case(Frozen):
    """Columns of a row that its prediction is made of; further columns are not looked at."""

    model_config = ConfigDict(strict=False, extra="ignore")

    def parts(self) -> tuple[Case, ...]:
        """Cases that are answered for this row, such as both sides of a ratio."""
        return (self,)

    def join(self, *replies: Any) -> Reply:
        """Reply to the row from the answers to its :meth:`parts`."""
        (reply,) = replies
        found: Reply = reply
        return found


class RowTopic(Frozen, ABC):
    """Topic whose rows are answered independently of each other."""

    row: ClassVar[type[Case]]
    title: ClassVar[str]
    """Name shown beside progress."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a table must have."""
        fields = self.row.model_fields.items()
        required = (field.alias or name for name, field in fields if field.is_required())
        return (*FIGURE_COLUMNS, *required)

    @abstractmethod
    def predict(self, case: Any) -> Any:
        """Answer to one case.

        Raises:
            UserError: if its deployment is impossible.
        """

    @abstractmethod
    def plan_key(self, case: Any) -> Hashable:
        """Whatever cases of one plan have in common: they are answered in one process."""

    def replies(self, table: Table, tick: Progress) -> list[Reply]:
        """Reply to every row, each different case answered once, on all cores."""
        rows = [self._read(cells) for cells in table.texts.to_dict("records")]
        cases = [part for row in rows if isinstance(row, Case) for part in row.parts()]
        found = answer_cases(cases, self.predict, self.plan_key, self.title, tick)
        return [_reply(row, found) for row in rows]

    def scores(self, table: Table, replies: list[Reply]) -> pd.DataFrame:
        """Figures, and ratios of mixtures of experts to dense models on one machine."""
        return figures(table.values, replies)

    def _read(self, cells: Mapping[Any, Any]) -> Case | UserError:
        filled = {str(name): cell for name, cell in cells.items() if not _is_empty(cell)}
        if refused := filled.get("refused"):
            return UserError(refused)
        try:
            return validate(self.row, filled, "published")
        except UserError as error:
            return error


def _is_empty(cell: Any) -> bool:
    return bool(pd.isna(cell)) or str(cell).strip() == ""


def _reply(row: Case | UserError, found: Mapping[Case, Any]) -> Reply:
    if isinstance(row, UserError):
        return Reply.refuse_row(str(row))
    parts = [found[part] for part in row.parts()]
    wrong = next((part for part in parts if isinstance(part, UserError)), None)
    return row.join(*parts) if wrong is None else Reply.refuse_row(str(wrong))
