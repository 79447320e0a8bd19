"""Prices of routed experts that lie below a GPU's memory, as the mean over a replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.cost.offload import ExpertSize, offloaded_s
from simulator.deployment.offload_plan import OffloadPlan
from simulator.deployment.placement import Placement
from simulator.work.expert_cache import CacheUses
from simulator.work.memory import expert_bytes


class OffloadPrices:
    """Prices of one placement's offloaded experts.

    Which experts a step finds in the cache depends on the steps before it; a price is the mean over
    the steps of a replay with as many tokens.
    """

    def __init__(
        self, placement: Placement, offload: OffloadPlan, beside_s: Callable[[int], float]
    ) -> None:
        """Prepare prices.

        Args:
            beside_s: seconds of a layer's other kernels by number of tokens.
        """
        model = placement.model
        assert model.moe is not None, "a dense model offloads nothing"
        self._offload, self._beside_s = offload, beside_s
        self._size = ExpertSize(
            expert_bytes(model, placement.layout, placement.precision, placement.pruning),
            2.0 * model.moe.num_expert_parameters(model.hidden_size),
        )

    def price_layers(
        self, gpu_YR: NDArray[np.float64], num_tokens: int, layers: Sequence[int]
    ) -> NDArray[np.float64]:
        """Seconds ``[Y, R]`` of the experts of several layers.

        Args:
            gpu_YR: seconds with all experts in the GPU's memory.
            layers: MoE layer of each row.
        """
        if num_tokens == 0:
            return gpu_YR
        uses, beside_s = self._offload.replay(num_tokens), self._beside_s(num_tokens)
        return np.stack(
            [
                np.full_like(gpu_R, self._price_layer(uses, float(gpu_R[0]), beside_s, layer))
                for gpu_R, layer in zip(gpu_YR, layers, strict=True)
            ]
        )

    def _price_layer(self, uses: CacheUses, gpu_s: float, beside_s: float, layer: int) -> float:
        # The layer itself behind the one before it, during which experts are fetched ahead.
        pair = CacheUses(*(one[:, [layer - 1, layer]] for one in uses))
        seconds = offloaded_s(pair, gpu_s, beside_s, self._size, self._offload.rates)
        return float(seconds[:, 1].mean())
