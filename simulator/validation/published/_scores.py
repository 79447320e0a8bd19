"""Long tables of scores: figures, and the ratio of two figures on the same machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.config.model import load_model
from simulator.results.scores import is_answered
from simulator.validation import OK
from simulator.validation.published import Part, Reply
from simulator.validation.published._names import model_name

Row = dict[str, Any]
"""A figure or a ratio, by :data:`simulator.results.scores.SCORE_COLUMNS`."""
_FIELDS = ["group", "subject", "quantity", "unit", "measured", "predicted", "low", "high", "status"]


def figures(
    groups: Sequence[str],
    subjects: Sequence[str],
    quantities: Sequence[str],
    units: Sequence[str],
    measured: pd.Series,
    replies: list[Reply],
) -> pd.DataFrame:
    """A row for each reply whose figure was measured."""
    rows = pd.DataFrame(
        {
            "group": list(groups),
            "subject": list(subjects),
            "quantity": list(quantities),
            "unit": list(units),
            "measured": pd.to_numeric(measured, errors="coerce").to_numpy(float),
            "predicted": [reply.predicted for reply in replies],
            "low": [reply.low for reply in replies],
            "high": [reply.high for reply in replies],
            "status": [reply.status for reply in replies],
            "parts": [reply.parts for reply in replies],
        }
    )
    kept: pd.DataFrame = rows[np.isfinite(rows["measured"]) & (rows["measured"] > 0)]
    return kept.reset_index(drop=True)


def ratio(group: str, subject: str, quantity: str, above: pd.Series, below: pd.Series) -> Row:
    """The row of ``above / below``, two rows of figures of one engine on one machine."""
    answered = bool(is_answered(pd.Series([above["status"], below["status"]])).all())
    statuses = [str(row["status"]) for row in (above, below)]
    status = next((text for text in statuses if text.startswith("unsupported")), None)
    status = status or next((text for text in statuses if text != OK), OK)
    predicted = above["predicted"] / below["predicted"] if answered else np.nan
    wide = _wide(above, below) if answered else np.nan
    return {
        "group": group,
        "subject": subject,
        "quantity": quantity,
        "unit": "x",
        "measured": above["measured"] / below["measured"],
        "predicted": predicted,
        "low": predicted / np.exp(wide),
        "high": predicted * np.exp(wide),
        "status": status,
    }


def _wide(above: pd.Series, below: pd.Series) -> float:
    """Half the band of a ratio, in log space.

    Where it is known what both times are made of, an entry that prices a part of both is off in
    both alike, so that what counts is by how much its shares differ; errors of different entries
    are independent. Else those of the two figures are taken as independent.
    """
    both = [{part.entry: part for part in _merged(row.get("parts", ()))} for row in (above, below)]
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


def _merged(parts: Sequence[Part]) -> list[Part]:
    """One part for each entry: phases that an entry prices together."""
    found: dict[str, Part] = {}
    for part in parts:
        known = found.get(part.entry)
        found[part.entry] = (
            part if known is None else known._replace(share=known.share + part.share)
        )
    return list(found.values())


def mixture_ratios(
    group: str, rows: pd.DataFrame, models: pd.Series, machines: Sequence[str]
) -> list[Row]:
    """Of each mixture of experts to each dense model on the same machine, where ``subject`` is the
    model, a space, the machine.
    """
    keyed = {str(row["subject"]): row for _, row in rows.iterrows()}
    names = [str(model) for model in models.unique()]
    found = []
    for machine in dict.fromkeys(machines):
        for above in filter(_is_mixture, names):
            for below in (name for name in names if not _is_mixture(name)):
                one, other = keyed.get(f"{above} {machine}"), keyed.get(f"{below} {machine}")
                if one is not None and other is not None:
                    found.append(
                        ratio(
                            f"{group} MoE : dense",
                            f"{above} : {below} {machine}",
                            "ratio",
                            one,
                            other,
                        )
                    )
    return found


def _is_mixture(model: str) -> bool:
    try:
        name = model_name(model)
        return load_model(name, name).moe is not None
    except UserError:
        return False


def with_ratios(rows: pd.DataFrame, ratios: list[Row]) -> pd.DataFrame:
    """Figures, then ratios."""
    return (
        pd.concat([rows, pd.DataFrame(ratios, columns=_FIELDS)], ignore_index=True)
        if ratios
        else rows
    )
