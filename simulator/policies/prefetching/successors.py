"""Prediction of the next layer's experts from what followed the layer before in a recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats
from simulator.base.frozen import Frozen
from simulator.base.quantities import Experts


class Successors(Frozen):
    """While a layer computes, as many experts are named as it uses: those that tokens of an earlier
    recording chose most often in the next layer behind this one's. Those of them that are missing
    are fetched.

    Needs recorded routing: drawn routing chooses in each layer by itself, so that nothing follows.
    Predicts less than the next layer's router does (``next_layer``).
    """

    experts: Experts = 2
    """Most experts that are fetched ahead for one layer of one step."""
    learns: ClassVar[bool] = True

    def prepare(self, earlier_LTK: NDArray[np.int16], num_experts: int) -> _Successors:
        uses_LTE = np.zeros((*earlier_LTK.shape[:2], num_experts), dtype=np.float32)
        np.put_along_axis(uses_LTE, earlier_LTK.astype(np.int64), 1.0, axis=2)
        pairs_LEE = uses_LTE[:-1].transpose(0, 2, 1) @ uses_LTE[1:]
        count_LE = uses_LTE[:-1].sum(axis=1)
        return _Successors(pairs_LEE / np.maximum(count_LE, 1.0)[:, :, None])


@dataclass(frozen=True)
class _Successors:
    """Experts of a layer that follow those of the layer before."""

    share_LEE: NDArray[np.float32]
    """Share of the tokens that chose an expert which chose each expert of the next layer,
    ``[L - 1, E, E]``."""

    def predict(self, used_LE: Bools) -> Floats:
        rates_LE = np.zeros(used_LE.shape)
        rates_LE[1:] = (used_LE[:-1, None, :].astype(np.float32) @ self.share_LEE)[:, 0]
        num_used_L = np.roll(used_LE.sum(axis=1), 1)
        rank_LE = np.argsort(np.argsort(-rates_LE, axis=1, kind="stable"), axis=1)
        return np.where(rank_LE < num_used_L[:, None], rates_LE, 0.0)
