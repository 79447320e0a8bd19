"""No prefetching: an expert is fetched when its layer asks for it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats
from simulator.base.frozen import Frozen


class Never(Frozen):
    """Links carry nothing while a layer computes."""

    experts: ClassVar[int] = 0

    def prepare(self, earlier_LTK: NDArray[np.int16], num_experts: int) -> Never:
        return self

    def predict(self, used_LE: Bools) -> Floats:
        return np.zeros(used_LE.shape)
