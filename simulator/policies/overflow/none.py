"""No overflow: every expert computes all tokens that choose it, as serving engines do."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen


class Dropless(Frozen):
    """Room for every token (MegaBlocks, arXiv:2211.15841)."""

    drops: ClassVar[bool] = False

    def keep(
        self, topk_ids_TK: NDArray[np.integer[Any]], source_T: NDArray[np.int64], num_experts: int
    ) -> NDArray[np.bool_]:
        return np.ones(topk_ids_TK.shape, dtype=np.bool_)
