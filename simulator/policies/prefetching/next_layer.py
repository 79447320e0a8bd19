"""Prediction of the next layer's experts by that layer's own router, asked a layer too early."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Bools, Floats, Ints
from simulator.base.frozen import Frozen
from simulator.base.quantities import Experts, Ratio

_DRAWS = 4093
"""Draws to choose from, a prime: a sum of numbers modulo it depends on all of them."""


class NextLayer(Frozen):
    """While a layer computes, the experts are fetched that the next layer's router names when it is
    given this layer's hidden state, which residual connections leave nearly the same
    (Mixtral-offloading, arXiv:2312.17238).

    Neither recordings nor drawn routing hold hidden states, so how often it is right is a key: each
    expert that the next layer will use is named with this probability, and another one instead
    otherwise. The first layer has none before it.
    """

    experts: Experts = 2
    """Most experts that are fetched ahead for one layer of one step."""
    hit_rate: Ratio = 0.8
    """Share of the experts that a layer uses which its router names a layer ahead, when it names as
    many. Published: 0.8 to 0.9 for Mixtral-8x7B (arXiv:2312.17238, Figure 2, as a summary of it
    reads), 0.67 for Qwen2 (ProMoE, arXiv:2410.22134)."""

    def prepare(self, earlier_LTK: NDArray[np.int16], num_experts: int) -> _Foresight:
        rng, shape = np.random.default_rng(0), (len(earlier_LTK), num_experts)
        return _Foresight(
            self.hit_rate,
            rng.integers(1 << 30, size=shape),
            rng.random((2, _DRAWS, num_experts), dtype=np.float32),
        )


@dataclass(frozen=True)
class _Foresight:
    """Experts that a layer will use, some of them mistaken."""

    hit_rate: float
    weight_LE: Ints
    """Numbers that choose a draw, by what the layers up to one use."""
    drawn_2NE: NDArray[np.float32]
    """Draws of which experts are mistaken, and of which are likelier."""

    def predict(self, used_LE: Bools) -> Floats:
        # A draw for each set of experts, so that the same question has the same answer.
        row_L = np.cumsum((used_LE * self.weight_LE).sum(axis=1)) % _DRAWS
        right_LE, score_LE = self.drawn_2NE[:, row_L]
        named_LE = used_LE & (right_LE < self.hit_rate)
        mistakes_L = (used_LE & ~named_LE).sum(axis=1)
        rank_LE = np.argsort(np.argsort(np.where(used_LE, 1.0, score_LE), axis=1), axis=1)
        named_LE |= ~used_LE & (rank_LE < mistakes_L[:, None])
        rates_LE = np.where(named_LE, 1.0 - score_LE, 0.0).astype(np.float64)
        rates_LE[0] = 0.0
        return rates_LE
