"""Experts spread whole over ranks against experts split like dense blocks, in tables of a rank's
expert kernels.

Two rows are a pair if they are alike in all but that. Whether spreading is faster, and whether it
gains or loses with load, is what a deployment is chosen by; both can be wrong where each kernel's
error is small.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulator.lab.validation import Answers, Measure

_SPLIT, _SPREAD, _LOAD = "moe_tp_size", "moe_ep_size", "num_tokens"
_FAR = 1.10
"""Ratio from which two times differ by more than measurements scatter."""
FEWEST_LOADS = 3
"""Loads that a trend needs: two make a line of any two numbers."""
_BOTH = ["measured", "predicted"]


def split_orders(
    suite: str, values: pd.DataFrame, columns: tuple[str, ...], measure: Measure, answers: Answers
) -> tuple[dict[str, object], ...]:
    """Number of pairs, and of series of pairs over load, differ by over 10 % when measured,
    and in how many the prediction agrees.

    Entries of a scoreboard's ``order``; none where a table has no pairs.

    Args:
        columns: what tells rows of the table apart.
    """
    if not {_SPLIT, _SPREAD, _LOAD, measure.column} <= set(values.columns):
        return ()
    both = _pairs(
        values, [name for name in columns if name not in (_SPLIT, _SPREAD)], measure, answers
    )
    if both.empty:
        return ()
    series = both.groupby(
        [name for name in both.columns if name not in (_LOAD, "measured", "predicted")],
        sort=False,
        dropna=False,
    )
    over_load = [
        load_trend(own[_LOAD], own[_BOTH])
        for _, own in series
        if own[_LOAD].nunique() >= FEWEST_LOADS
    ]
    changes = pd.DataFrame(over_load, columns=_BOTH)
    return (
        {"suite": f"{suite}, experts spread against split,", **count_sides(both)},
        {"suite": f"{suite}, their ratio at much load against at little,", **count_sides(changes)},
    )


def _pairs(
    values: pd.DataFrame, keys: list[str], measure: Measure, answers: Answers
) -> pd.DataFrame:
    """The ratio of spread to split, measured and predicted, with what both rows have in common."""
    sizes = values[[_SPLIT, _SPREAD, _LOAD]].apply(pd.to_numeric, errors="coerce")
    rows = values[keys].assign(
        **{_LOAD: sizes[_LOAD]},
        ranks=sizes[_SPLIT] * sizes[_SPREAD],
        measured=pd.to_numeric(values[measure.column], errors="coerce") * measure.unit_s,
        predicted=answers.seconds[:, 0],
    )
    usable = (
        (rows["measured"] > 0)
        & (rows["predicted"] > 0)
        & np.isfinite(rows["measured"])
        & (rows[_LOAD] > 0)
    )
    alike = [*keys, "ranks"]
    spread, split = (
        # of two kernels that were timed an engine takes the faster
        rows[usable & (sizes[of] > 1) & (sizes[other] == 1)]
        .groupby(alike, sort=False, dropna=False)[["measured", "predicted"]]
        .min()
        for of, other in ((_SPREAD, _SPLIT), (_SPLIT, _SPREAD))
    )
    found: pd.DataFrame = (spread / split).dropna().reset_index()
    return found


def load_trend(loads: pd.Series, ratios: pd.DataFrame) -> tuple[float, float]:
    """Factors by which two ratios are larger at their largest load than at their smallest, by the
    slope of its logarithm over that of all loads.
    """
    logs = np.log(loads.to_numpy(float))
    slopes = np.polyfit(logs, np.log(ratios.to_numpy(float)), 1)[0]
    measured, predicted = np.exp(slopes * (logs.max() - logs.min())).tolist()
    return measured, predicted


def count_sides(ratios: pd.DataFrame) -> dict[str, int]:
    """Count the measured ratios that are more than 10 % from one, and those of them that are
    predicted on the same side.
    """
    measured, predicted = ratios["measured"].to_numpy(float), ratios["predicted"].to_numpy(float)
    far = np.maximum(measured, 1 / measured) > _FAR
    right = far & ((measured > 1) == (predicted > 1))
    return {"pairs": int(far.sum()), "right": int(right.sum())}
