"""Rows of a published table, read strictly, each a frozen model whose fields are its columns, and
answered on all cores; scores of their figures, and of ratios of two figures on one machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import AfterValidator, ConfigDict, PositiveInt

from simulator.base.data import cache_lookups
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, validate
from simulator.base.progress import Progress, count_part
from simulator.config.model import load_model
from simulator.lab.results.scores import is_answered
from simulator.lab.validation import OK
from simulator.lab.validation.hardware import accelerator_name
from simulator.lab.validation.published import FIGURE_COLUMNS, Part, Reply
from simulator.lab.validation.serving.deployments import find_model
from simulator.lab.validation.tables import Table
from simulator.parallel.workers import sweep

Row = dict[str, object]
"""A figure or a ratio, by :data:`simulator.lab.results.scores.SCORE_COLUMNS`."""
FIELDS = ["group", "subject", "quantity", "unit", "measured", "predicted", "low", "high", "status"]
"""Columns of a table of scores, less the suite."""
_FEWEST_GROUPS = 4
"""Fewer groups of cases are answered in this process: starting others takes seconds."""


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

    def join(self, *replies: Reply) -> Reply:
        """Reply to the row from the answers to its :meth:`parts`."""
        (reply,) = replies
        return reply


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
        """Reply to every row, each different case answered once, on all cores, and those that share
        a plan and a step table one after the other in one process.
        """
        rows = [self._read(cells) for cells in table.texts.to_dict("records")]
        groups: dict[Hashable, list[Case]] = {}
        for case in dict.fromkeys(
            part for row in rows if isinstance(row, Case) for part in row.parts()
        ):
            groups.setdefault(self.plan_key(case), []).append(case)
        ordered = sorted(groups.values(), key=len, reverse=True)
        count = count_part(tick, self.title, sum(map(len, ordered)))
        workers = 1 if len(ordered) < _FEWEST_GROUPS else None
        answer = partial(_answer_all, self.predict)
        answers = sweep(answer, ordered, lambda done: count(sum(map(len, ordered[:done]))), workers)
        found = {
            case: answer
            for cases, own in zip(ordered, answers, strict=True)
            for case, answer in zip(cases, own, strict=True)
        }
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


@cache_lookups()
def _answer_all(predict: Callable[[Case], Any], cases: Sequence[Case]) -> list[Any]:
    """Answer of each case, or the error that it raised."""
    found = []
    for case in cases:
        try:
            found.append(predict(case))
        except UserError as error:
            found.append(error)
    return found


def _reply(row: Case | UserError, found: Mapping[Case, Any]) -> Reply:
    if isinstance(row, UserError):
        return Reply.refuse_row(str(row))
    parts = [found[part] for part in row.parts()]
    wrong = next((part for part in parts if isinstance(part, UserError)), None)
    return row.join(*parts) if wrong is None else Reply.refuse_row(str(wrong))


def figures(table: pd.DataFrame, replies: list[Reply]) -> pd.DataFrame:
    """A row for each reply whose figure was measured, then the ratio of each mixture of experts to
    each dense model of the same ``machine``.

    Args:
        table: the columns of :data:`~simulator.lab.validation.published.FIGURE_COLUMNS`, ``value``,
            and for ratios ``machine`` and ``model``.
    """
    if "value" not in table:
        return make_rows([])
    given = table.rename(columns={"case": "subject"})
    rows = pd.concat([given, pd.DataFrame(replies, index=table.index)], axis=1)
    rows["measured"] = pd.to_numeric(table["value"], errors="coerce").astype(float)
    rows = rows[np.isfinite(rows["measured"]) & (rows["measured"] > 0)]
    ratios = _mixture_ratios(rows) if {"machine", "model"} <= set(table) else []
    found: pd.DataFrame = rows[[*FIELDS, "parts"]].reset_index(drop=True)
    return pd.concat([found, make_rows(ratios)], ignore_index=True) if ratios else found


def ratio(group: str, subject: str, above: pd.Series, below: pd.Series) -> Row:
    """The row of ``above / below``, two rows of figures of one engine on one machine."""
    statuses = [str(row["status"]) for row in (above, below)]
    answered = bool(is_answered(pd.Series(statuses)).all())
    status = next((text for text in statuses if text.startswith("unsupported")), None)
    status = status or next((text for text in statuses if text != OK), OK)
    measured = above["measured"] / below["measured"]
    predicted = above["predicted"] / below["predicted"] if answered else np.nan
    wide = half_band(above, below) if answered else np.nan
    return make_row(group, subject, (measured, predicted), wide, status)


def make_row(
    group: str, subject: str, ratios: tuple[float, float], wide: float, status: str
) -> Row:
    """The row of a ratio.

    Args:
        ratios: measured and predicted.
        wide: half the band, in log space.
    """
    measured, predicted = ratios
    ends = predicted / np.exp(wide), predicted * np.exp(wide)
    values = (group, subject, "ratio", "x", measured, predicted, *ends, status)
    return dict(zip(FIELDS, values, strict=True))


def half_band(above: pd.Series, below: pd.Series) -> float:
    """Half the band of a ratio, in log space.

    Where it is known what both times are made of, an entry that prices a part of both is off in
    both alike, so that what counts is by how much its shares differ; errors of different entries
    are independent. Else those of the two figures are taken as independent.
    """
    both = [
        {part.entry: part for part in _merge_parts(row.get("parts", ()))} for row in (above, below)
    ]
    if not all(both):
        ends = [
            np.hypot(*(np.log(row[end] / row["predicted"]) for row in (above, below)))
            for end in ("low", "high")
        ]
        return float(max(ends))
    wide = []
    for entry in {**both[0], **both[1]}:
        of_entry = [parts[entry] for parts in both if entry in parts]
        apart = abs(of_entry[0].share - (of_entry[1].share if len(of_entry) > 1 else 0.0))
        wide.append(apart * max(max(np.log(part.high), -np.log(part.low)) for part in of_entry))
    return float(np.linalg.norm(wide))


def _merge_parts(parts: Sequence[Part]) -> list[Part]:
    """One part for each entry: phases that an entry prices together."""
    found: dict[str, Part] = {}
    for part in parts:
        known = found.get(part.entry)
        found[part.entry] = known._replace(share=known.share + part.share) if known else part
    return list(found.values())


def _mixture_ratios(rows: pd.DataFrame) -> list[Row]:
    rows = rows[rows["machine"] != ""].drop_duplicates(["machine", "subject"], keep="last")
    is_mixture = rows["model"].map({name: _is_mixture(name) for name in rows["model"].unique()})
    found = []
    for machine, own in rows.groupby("machine", sort=False):
        for _, above in own[is_mixture[own.index]].iterrows():
            for _, below in own[~is_mixture[own.index]].iterrows():
                name = str(above["subject"]).removesuffix(str(machine)).strip()
                group = f"{str(above['group']).split()[0]} MoE : dense"
                found.append(ratio(group, f"{name} : {below['subject']}", above, below))
    return found


def _is_mixture(text: str) -> bool:
    model = find_model(text)
    return model is not None and load_model(model.model, text).moe is not None


def make_rows(found: Sequence[Row]) -> pd.DataFrame:
    """Ratios as a table of scores."""
    rows = pd.DataFrame(found, columns=FIELDS)
    return rows.astype(dict.fromkeys(("measured", "predicted", "low", "high"), float))
