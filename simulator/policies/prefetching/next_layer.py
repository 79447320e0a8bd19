"""Prediction of the next layer's experts from those of the layer before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.base.quantities import Experts


class NextLayer(Frozen):
    """While a layer computes, the experts are fetched that tokens of an earlier recording chose
    most often in the next layer behind this one's.

    Recordings hold no hidden states, which the next layer's own router could be asked with ahead of
    time, as Mixtral-offloading does (arXiv:2312.17238); how often experts of two layers follow each
    other is what they do hold, and predicts less.
    """

    experts: Experts = 2
    """Most experts that are fetched ahead for one layer of one step."""

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

    def predict(self, used_LE: NDArray[np.bool_]) -> NDArray[np.float64]:
        rates_LE = np.zeros(used_LE.shape)
        rates_LE[1:] = (used_LE[:-1, None, :].astype(np.float32) @ self.share_LEE)[:, 0]
        return rates_LE
