"""Long tables of scores: figures, and the ratio of two figures on the same machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulator.config.model import load_model
from simulator.results.scores import is_answered
from simulator.validation import OK
from simulator.validation.published import Part, Reply
from simulator.validation.serving.models import find_model

Row = dict[str, Any]
"""A figure or a ratio, by :data:`simulator.results.scores.SCORE_COLUMNS`."""
FIELDS = ["group", "subject", "quantity", "unit", "measured", "predicted", "low", "high", "status"]
"""Columns of a table of scores, less the suite."""


def figures(table: pd.DataFrame, replies: list[Reply]) -> pd.DataFrame:
    """A row for each reply whose figure was measured, then the ratio of each mixture of experts to
    each dense model of the same ``machine``.

    Args:
        table: the columns of :data:`~simulator.validation.published.FIGURE_COLUMNS`, ``value``,
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
