"""What a replica's steps take, in closed form: the planner's screen goes by these instead of forming steps.

Every number comes from the same prices as the engine's; what is left out is chance: batches are what they are on average, and
sequences are as long as the traffic's mean one.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.cost.compute import Phase
from simulator.cost.compute.context import kernels_s
from simulator.plan import Plan
from simulator.planner.traffic import Traffic
from simulator.price import Prices
from simulator.work.context import total_sums

Floats = NDArray[np.float64]

_POINTS = 28
"""Numbers of tokens that blocks are priced at; between them prices are interpolated."""
_EXPERT_POINTS = 8
"""Numbers at which routed experts are priced, each in another layer."""


class Curve:
    """Steps of one replica with ``traffic``'s sequences, evenly spread over its data-parallel ranks."""

    def __init__(self, plan: Plan, traffic: Traffic, max_tokens: int, like: Curve | None = None) -> None:
        """Price the blocks of a step at a few numbers of tokens.

        Args:
            like: of a plan that differs in its cache's format or in overlap only, whose blocks and experts take as long.
        """
        self.plan = plan
        self.max_tokens = max_tokens
        self._like = like
        self._grid = np.unique(np.rint(np.geomspace(1, max_tokens, _POINTS)).astype(np.int64))
        self._prices = Prices(plan, max_tokens, self._grid)
        self._sums: dict[Phase, Floats] = {
            "prefill": self._mean_sums(np.zeros_like(traffic.prompts), traffic.prompts, "prefill"),
            "decode": self._mean_sums(traffic.contexts, np.ones_like(traffic.contexts), "decode"),
        }

    @cached_property
    def _blocks_s(self) -> Floats:
        """``[T]`` all layers without looking back and without routed experts."""
        if self._like is not None:
            return self._like._blocks_s
        prices = self._prices
        total = np.zeros(len(self._grid))
        for name, count in prices.mixer_layers.items():
            total += prices.mixer_s[name] * count
        for name, count in prices.ffn_layers.items():
            total += prices.ffn_s[name] * count
        if self.plan.layout.tp > 1:
            total += prices.all_reduces_s(self._grid) * prices.num_all_reduces
        return total

    @cached_property
    def _experts_s(self) -> tuple[Floats, Floats, Floats]:
        """Numbers of tokens of a data-parallel rank; seconds of experts, waiting included, and of exchanges, in all layers."""
        if self._like is not None:
            return self._like._experts_s
        model, dp = self.plan.model, self.plan.layout.attention_dp
        tokens = np.unique(np.rint(np.geomspace(1, self.max_tokens, _EXPERT_POINTS)).astype(np.int64))
        computing, travelling = np.zeros(len(tokens)), np.zeros(len(tokens))
        if self.plan.experts is None:
            return tokens.astype(np.float64), computing, travelling
        for place, number in enumerate(tokens):
            layer = place * 5 % model.num_moe_layers
            step = self._prices.expert_step(layer, np.full(dp, number, dtype=np.int64), 211 * place)
            computing[place] = step.experts_R.max() * model.num_moe_layers
            travelling[place] = (step.dispatch.alone_s + step.combine.alone_s) * model.num_moe_layers
        return tokens.astype(np.float64), computing, travelling

    def _mean_sums(self, context: NDArray[np.int64], new: NDArray[np.int64], phase: Phase) -> Floats:
        """``[J, 6]``: for each context kernel, what a mean sequence adds to its sums."""
        rows = []
        for term in self._prices.lookbacks:
            rates = self._prices.rates[term, phase]
            sums = total_sums(context, new, term.window + int(rates.window_block), term.compression, rates.tile_rows)
            sums[:5] /= len(new)
            rows.append(sums)
        return np.array(rows).reshape(-1, 6)

    def looking_s(self, phase: Phase, sequences: Floats) -> Floats:
        """Seconds of all layers' context kernels for ``[n]`` sequences on a rank; fractions are the share of steps with one."""
        total = np.zeros(len(sequences))
        for j, term in enumerate(self._prices.lookbacks):
            rates = np.array(list(self._prices.rates[term, phase]))
            sums = np.tile(self._sums[phase][j], (len(sequences), 1))
            sums[:, :5] *= sequences[:, None]
            sums[:, 5] *= sequences > 0
            floors = rates[0] * (1 - np.minimum(sequences, 1.0))
            total += term.num_layers * (kernels_s(np.tile(rates, (len(sequences), 1)), sums) - floors)
        return total

    def step_s(self, decodes: Floats, prompts: Floats, prompt_tokens: float) -> Floats:
        """Seconds of a step in which each data-parallel rank decodes for ``[n]`` sequences and computes ``[n]`` prompts (or parts).

        Args:
            prompt_tokens: of a whole prompt.
        """
        tokens = np.maximum(decodes + prompts * prompt_tokens, 1.0)
        logits = np.clip(decodes + prompts, 1, self.max_tokens)
        engine, model = self.plan.calibration.engine, self.plan.model
        computing = self._at(tokens, self._blocks_s) + self.looking_s("decode", decodes) + self.looking_s("prefill", prompts)
        grid, experts_s, exchanges_s = self._experts_s
        experts = np.interp(tokens, grid, experts_s)
        exchanges = np.interp(tokens, grid, exchanges_s)
        if self.plan.spec.overlap == "two_batch":
            halves = np.maximum(tokens / 2, 1.0)
            computing += 2 * self._at(halves, self._blocks_s) - self._at(tokens, self._blocks_s)
            experts = 2 * np.interp(halves, grid, experts_s)
            exchanges = 2 * np.interp(halves, grid, exchanges_s)
            busy = np.maximum(computing + experts, exchanges)
        else:
            busy = computing + experts + exchanges
        own_s = engine.step_s + (decodes + np.ceil(prompts)) * engine.sequence_s
        own_s = own_s + engine.prompt_s(model.num_layers, model.num_moe_layers) * np.minimum(prompts, 1.0)
        return np.asarray(busy + self._at(logits, self._prices.head_s) + own_s)

    def _at(self, tokens: Floats, seconds: Floats) -> Floats:
        return np.interp(tokens, self._grid, seconds)
