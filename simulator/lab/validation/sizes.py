"""Sizes of a table's rows: what cannot be the size of a kernel is refused before anything is
computed or allocated for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.arrays import Floats

LARGEST = 2.0**24
"""Most tokens, features or sequences: several times what any table holds, and far from what
overflows an integer or fills a memory."""
MOST_RANKS = 512.0
"""Most ranks of one exchange or collective: its links are counted pair by pair."""
MOST_EXPERTS, MOST_CHOICES = 2048.0, 256.0
"""Most experts of a layer, and of a token."""


def numbers(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, Floats]:
    """Columns of a table as numbers, not a number where there is none."""
    return {
        name: pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=float) for name in columns
    }


def refusals(
    sizes: Mapping[str, Floats],
    least: Mapping[str, float] | None = None,
    most: Mapping[str, float] | None = None,
    fractions: Sequence[str] = (),
) -> NDArray[np.object_]:
    """Why each row's sizes are none, ``""`` where they are; the first that is wrong is named.

    Args:
        least: by column, where it is not 1.
        most: by column, where it is not :data:`LARGEST`.
        fractions: columns that need not be whole numbers.

    >>> refusals({"m": np.array([1.0, 0.0, 2.5, np.nan])}).tolist()
    ['', 'm is 0, below 1', 'm is 2.5, not a whole number', 'm is not a number']
    >>> refusals({"m": np.array([1e18])}).tolist()
    ['m is 1e+18, above 16,777,216']
    """
    found = np.full(len(next(iter(sizes.values()))), "", dtype=object)
    for name, values in sizes.items():
        lowest, highest = (least or {}).get(name, 1.0), (most or {}).get(name, LARGEST)
        with np.errstate(invalid="ignore"):
            is_wrong = ~(
                (values >= lowest)
                & (values <= highest)
                & ((values % 1.0 == 0) | (name in fractions))
            )
        for row in np.flatnonzero(is_wrong & (found == "")):
            found[row] = f"{name} is {_why(float(values[row]), lowest, highest)}"
    return found


def _why(value: float, lowest: float, highest: float) -> str:
    if np.isnan(value):
        return "not a number"
    if lowest <= value <= highest:
        return f"{value:g}, not a whole number"
    return (
        f"{value:g}, below {lowest:,.0f}" if value < lowest else f"{value:g}, above {highest:,.0f}"
    )
