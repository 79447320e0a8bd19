"""Dispatch of one copy for every chosen expert, straight to its rank (DeepEP's low-latency
kernels).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simulator.base.arrays import Floats, Ints
from simulator.base.frozen import Frozen
from simulator.policies.dispatch import Rows
from simulator.policies.token_counts import count_copies


class PerExpert(Frozen):
    """``K`` copies a token, less those that stay on the token's own rank."""

    kernels: str = "low_latency"
    """Name of the entry in the calibration's table ``exchange`` that prices it, such as
    ``one_sided``."""
    sees: ClassVar[str] = "rows"

    def copies(self, rank_TK: Ints, source_T: Ints, node_R: Ints) -> Floats:
        return np.asarray(count_copies(rank_TK, source_T, len(node_R), False))

    def rows(self, rank_TK: Ints, node_R: Ints) -> Rows:
        token_N, choice_N = np.nonzero(rank_TK >= 0)
        return Rows(token_N, rank_TK[token_N, choice_N], choice_N[:, None])
