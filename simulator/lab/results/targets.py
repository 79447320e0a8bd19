"""Accuracy targets of predictions, and further requirements."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

MOE, DENSE = "MoE", "dense"
"""Words of a group that say what kind of model its rows are of."""


class Target(NamedTuple):
    """Accuracy target: limits of the absolute relative error."""

    what: str
    suites: tuple[str, ...]
    median: float
    """Limit of the median error."""
    p90: float
    """Limit of the 90th percentile of the errors."""
    quantity: str = ""
    """Quantity of the rows that the target is about; empty for all."""
    word: str = ""
    """Word in the group of the rows that the target is about; empty for all."""

    def select_rows(self, rows: pd.DataFrame) -> pd.Series:
        """Whether the target is about each row of a table with ``suite``, ``quantity`` and
        ``group``.
        """
        covered = rows["suite"].isin(self.suites)
        if self.quantity:
            covered &= rows["quantity"] == self.quantity
        if self.word:
            covered &= pd.Series(
                [self.word in group.split() for group in rows["group"].astype(str)],
                index=rows.index,
                dtype=bool,
            )
        return covered


TARGETS = (
    Target("Grouped GEMM of a rank's experts, balanced and skewed", ("moe", "eplb"), 0.08, 0.25),
    Target("Dense GEMM kernels", ("gemm",), 0.10, 0.30),
    Target("Attention kernels", ("attention",), 0.10, 0.30),
    Target("MLA kernels", ("mla",), 0.10, 0.30),
    Target("All-to-all", ("alltoall",), 0.08, 0.20),
    Target("Collectives", ("collective",), 0.08, 0.20),
    Target("Serving TPOT, MoE", ("serving",), 0.12, 0.30, "tpot", MOE),
    Target("Serving TPOT, dense", ("serving",), 0.10, 0.30, "tpot", DENSE),
    Target("Serving TTFT", ("serving",), 0.20, 0.50, "ttft"),
    Target("Published throughput", ("published",), 0.12, 0.25, "throughput"),
    Target("MoE : dense ratio on one machine", ("published",), 0.08, 0.15, "ratio", MOE),
)
"""Targets for models and GPUs that no calibration has seen; they are not to be moved."""
LEAST_RIGHT_ORDER = 0.90
"""Share of pairs of deployments, more than 10 % apart, whose predicted order must be right."""
BANDS_HOLD = (0.75, 0.85)
"""Share of measurements that must lie inside their 80 % bands."""
LEAST_COMPARED = 20
"""Number of pairs, or of measurements with a band, below which a share of them says nothing."""
_BY_CHANCE = 0.05
"""Probability of wrongly calling a right band wrong, were rows independent of each other."""
LEAST_ANSWERED = {"serving": 0.90}
"""Share of a suite's rows that must have a prediction."""


def target_of(suite: str, quantity: str, group: str) -> Target | None:
    """Find the target of a group of rows."""
    one = pd.DataFrame({"suite": [suite], "quantity": [quantity], "group": [group]})
    return next((target for target in TARGETS if target.select_rows(one).item()), None)


def is_met(median: float, p90: float, target: Target | None) -> bool | None:
    """Whether errors are within a target; ``None`` where there is none, or nothing to judge."""
    return (
        None
        if target is None or not np.isfinite(median)
        else bool(median <= target.median and p90 <= target.p90)
    )


def bands_hold(inside: int, count: int) -> bool:
    """Whether ``inside`` of ``count`` measurements in their bands satisfy :data:`BANDS_HOLD`,
    allowing for chance.

    >>> bands_hold(18, 20), bands_hold(10, 20)
    (True, False)
    >>> [bands_hold(inside, 1000) for inside in (900, 800, 600)]
    [False, True, False]
    """
    from scipy.stats import binom  # half a second, which a run needs not

    low, high = BANDS_HOLD
    return bool(
        binom.ppf(_BY_CHANCE / 2, count, low)
        <= inside
        <= binom.ppf(1 - _BY_CHANCE / 2, count, high)
    )
