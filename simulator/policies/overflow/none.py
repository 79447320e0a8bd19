"""No overflow: every expert computes all tokens that choose it, as serving engines do."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.policies.overflow import RoutedTokens


class Dropless(Frozen):
    """Room for every token (MegaBlocks, arXiv:2211.15841)."""

    drops: ClassVar[bool] = False

    def admit(self, tokens: RoutedTokens) -> NDArray[np.integer]:
        return tokens.ids_TJ[:, : tokens.top_k]
