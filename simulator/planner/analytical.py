"""Analytical seconds of a replica's steps: the planner's screen goes by these instead of forming
steps.

Every number comes from the same prices as the engine's; what is left out is chance: batches are
what they are on average, and sequences are as long as the traffic's mean one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.cost.compute import Phase
from simulator.cost.kernels.attention import kernels_s
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.traffic import Traffic
from simulator.step.prices import Prices, sends_s, stage_shares
from simulator.work.context import total_sums

Floats = NDArray[np.float64]

_POINTS = 28
"""Numbers of tokens that blocks are priced at; between them prices are interpolated."""
_EXPERT_POINTS = 8
"""Numbers at which routed experts are priced, each in another layer."""


class Terms(NamedTuple):
    """Parts of a step's seconds, whose sum is the step; ``[n]`` each."""

    weights: Floats
    """Streaming weights from memory: of all blocks, and of the mean rank's experts."""
    products: Floats
    """Matrix products beyond that, since many tokens share the weights."""
    cache: Floats
    """Reading the KV cache in decode."""
    prompts: Floats
    """Looking back in prompts."""
    waiting: Floats
    """Excess of the rank with most work for its experts over the mean one, and of a pipeline's
    longest stage over others."""
    exchanges: Floats
    """Tokens on their way to experts and back, as far as nothing is computed meanwhile."""
    all_reduces: Floats
    """Sums over tensor-parallel ranks, and ways from stage to stage of a pipeline."""
    host: Floats
    """The engine's own time."""

    @property
    def total(self) -> Floats:
        """The step."""
        return np.sum(self, axis=0)  # type: ignore[no-any-return]


class _Experts(NamedTuple):
    """Routed experts of all layers, by tokens of a data-parallel rank; ``[T]`` each."""

    tokens: Floats
    busiest_s: Floats
    """Seconds of the rank that the others wait for."""
    mean_s: Floats
    streaming_s: Floats
    """Part of the mean rank's seconds in which its weights are read."""
    exchanges_s: Floats


class Curve:
    """Steps of one replica with ``traffic``'s sequences, evenly spread over its batches."""

    def __init__(
        self,
        plan: DeploymentPlan,
        traffic: Traffic,
        max_tokens: int,
        like: Curve | None = None,
        pass_tokens: int = 0,
    ) -> None:
        """Price the blocks of a step at a few numbers of tokens.

        Args:
            like: of a plan with the same kernels
                (:attr:`simulator.planner.space.ReplicaShape.kernels`): blocks and experts take as
                long.
            pass_tokens: tokens of a decoding sequence in a pass of the module that drafts; 0 = the
                model's own steps.
        """
        self.plan, self.traffic, self.max_tokens = plan, traffic, max_tokens
        self._priced_by: Curve = self if like is None else like._priced_by
        self._is_module = pass_tokens > 0
        self._decode_tokens = pass_tokens or 1 + plan.placement.drafts.num_tokens
        self._passes = self._price_passes(traffic, like)
        self._grid = np.unique(np.rint(np.geomspace(1, max_tokens, _POINTS)).astype(np.int64))
        self._prices = Prices(plan.placement, max_tokens, self._grid)
        self._sums: dict[Phase, Floats] = {
            "prefill": self._mean_sums(np.zeros_like(traffic.prompts), traffic.prompts, "prefill"),
            "decode": self._mean_sums(
                traffic.contexts, np.full_like(traffic.contexts, self._decode_tokens), "decode"
            ),
        }

    def _price_passes(self, traffic: Traffic, like: Curve | None) -> list[tuple[Curve, int]]:
        """Curves of the passes that draft, and how many there are of each: the first is over all
        tokens of a step, each further one over one token of each sequence.
        """
        module, found = self.plan.placement.module, []
        if module is None:
            return []
        plan, more = replace(self.plan, placement=module), self.plan.placement.drafts.num_tokens - 1
        passes = [(self._decode_tokens, 1), (1, more)]
        for n, (tokens, times) in enumerate(passes if more else passes[:1]):
            alike = None if like is None else like._passes[n][0]
            found.append((Curve(plan, traffic, self.max_tokens, alike, tokens), times))
        return found

    @cached_property
    def _matrices_s(self) -> Floats:
        """``[T]`` all layers without looking back, all-reduces and routed experts."""
        prices = self._prices
        total = np.zeros(len(self._grid))
        for name, count in prices.mixer_layers.items():
            total += prices.mixer_s[name] * count
        for name, count in prices.ffn_layers.items():
            total += prices.ffn_s[name] * count
        return total + prices.projection_s if self._is_module else total

    @cached_property
    def _all_reduces_s(self) -> Floats:
        """``[T]`` of a step."""
        if self.plan.placement.layout.tp == 1:
            return np.zeros(len(self._grid))
        return self._prices.all_reduces_s(self._grid) * self._prices.num_all_reduces

    @cached_property
    def _sends_s(self) -> Floats:
        """``[T]`` from stage to stage of a pipeline."""
        return sends_s(self._prices, self._grid)

    @cached_property
    def _experts(self) -> _Experts:
        """Each number of tokens is priced in another layer, which stands for all."""
        placement = self.plan.placement
        model, layout, dtype = (placement.model, placement.layout, placement.precision.experts)
        tokens = np.unique(
            np.rint(np.geomspace(1, self.max_tokens, _EXPERT_POINTS)).astype(np.int64)
        )
        found = np.zeros((4, len(tokens)))
        if placement.experts is None or model.moe is None:
            return _Experts(tokens.astype(np.float64), *found)
        expert_bytes = self._prices.experts.expert_bytes
        for place, number in enumerate(tokens):
            layer = place * 5 % model.num_moe_layers
            step = self._prices.expert_step(
                layer, np.full(layout.attention_dp, number, dtype=np.int64), 211 * place
            )
            mean_s = float(step.experts_R.mean())
            rows = float(step.pairs_R.mean()) * expert_bytes / step.read_bytes
            streaming_s = mean_s * float(self._share_streaming(dtype, np.array(rows)))
            exchanges_s = step.dispatch.alone_s + step.combine.alone_s
            found[:, place] = step.experts_R.max(), mean_s, streaming_s, exchanges_s
        return _Experts(tokens.astype(np.float64), *(found * model.num_moe_layers))

    def _share_streaming(self, dtype: str, rows: Floats) -> Floats:
        """Share of matrix products' seconds that reading the weights explains: a roofline of the
        accelerator's peaks.

        Args:
            rows: that each weight which is read is multiplied with.
        """
        accelerator = self.plan.placement.accelerator
        balance = (
            accelerator.flops_per_s(dtype)
            * BYTES_PER_ELEMENT[dtype]
            / (2 * accelerator.memory_bytes_per_s)
        )
        return np.minimum(1.0, balance / np.maximum(rows, 1.0))

    def _mean_sums(
        self, context: NDArray[np.int64], new: NDArray[np.int64], phase: Phase
    ) -> Floats:
        """``[J, 6]``: for each context kernel, what a mean sequence adds to its sums."""
        rows = []
        for term in self._prices.context_kernels:
            sums = total_sums(context, new, *self._prices.view(term, phase))
            sums[:5] /= len(new)
            rows.append(sums)
        return np.array(rows).reshape(-1, 6)

    def attention_s(self, phase: Phase, sequences: Floats) -> Floats:
        """Seconds of all layers' context kernels for ``[n]`` sequences on a rank; fractions are the
        share of steps with one.
        """
        total = np.zeros(len(sequences))
        for j, term in enumerate(self._prices.context_kernels):
            rates_n = np.array([self._prices.rates[term, phase]]).repeat(len(sequences), axis=0)
            sums_n = self._sums[phase][j : j + 1].repeat(len(sequences), axis=0)
            sums_n[:, :5] *= sequences[:, None]
            sums_n[:, 5] *= sequences > 0
            floors = rates_n[:, 0] * (1 - np.minimum(sequences, 1.0))
            total += term.num_layers * (kernels_s(rates_n, sums_n) - floors)
        return total

    def step_s(self, decodes: Floats, prompts: Floats, prompt_tokens: float) -> Floats:
        """Seconds of a step: the sum of its :meth:`terms`."""
        return self.terms(decodes, prompts, prompt_tokens).total

    def steady_terms(self, decodes: Floats, budget: int) -> tuple[Terms, Floats]:
        """Terms of the mean step where requests come as fast as they leave, for sequences that
        decode on a data-parallel rank; and how busy prompts keep it: the share of the ``budget``
        that tokens take, or of the time where prompts have steps of their own.
        """
        num_input, drafts = self.traffic.num_input, self.plan.placement.drafts
        prompts = decodes * drafts.mean_kept / self.traffic.num_output
        if self.plan.serving.rules.mixes_phases:
            tokens = decodes * (1 + drafts.num_tokens) + prompts * num_input
            return self.terms(decodes, prompts, num_input), tokens / budget
        nothing = np.zeros(len(decodes))
        decoding = self.terms(decodes, nothing, 0.0)
        # Prompts that came during a step share the next one, the ranks that got none idle: at the
        # least one prompt's time.
        parts = max(1.0, num_input / budget)
        together = np.clip(prompts, 1.0, max(1.0, budget / num_input))
        pause = self.terms(nothing, together / parts, num_input)
        times = (
            math.ceil(parts)
            * np.minimum(prompts * self.plan.placement.layout.num_batches, 1.0)
            * np.maximum(1.0, prompts / together)
        )
        step = Terms(*(one + times * more for one, more in zip(decoding, pause, strict=True)))
        return step, pause.total * times / step.total

    def _count(
        self, decodes: Floats, prompts: Floats, prompt_tokens: float
    ) -> tuple[Floats, Floats]:
        """Tokens of a step, and those that the output matrix is asked for."""
        logits = decodes * (1 if self._is_module else self._decode_tokens) + prompts
        return (
            np.maximum(decodes * self._decode_tokens + prompts * prompt_tokens, 1.0),
            np.clip(logits, 1, self.max_tokens),
        )

    def _pipeline_wait_s(self, alone: Floats, layers: Floats, head: Floats, own: Floats) -> Floats:
        """Wait of a batch of a pipeline for the longest stage, or the engine, that has not done
        with the others in flight.
        """
        longest, last = stage_shares(self._prices.placement)
        busiest = (
            np.max([layers * longest, layers * last + head, own], axis=0)
            * self.plan.placement.layout.pp
        )
        return np.asarray(np.maximum(busiest - alone, 0.0), dtype=np.float64)

    def terms(self, decodes: Floats, prompts: Floats, prompt_tokens: float) -> Terms:
        """Terms of a step in which each data-parallel rank decodes for ``[n]`` sequences and
        computes ``[n]`` prompts (or parts).

        Args:
            prompt_tokens: of a whole prompt.
        """
        tokens, logits = self._count(decodes, prompts, prompt_tokens)
        blocks, routed = self._priced_by, self._priced_by._experts
        parts = 2 if self.plan.spec.overlap == "two_batch" else 1
        each = np.maximum(tokens / parts, 1.0)
        share = self._share_streaming(self.plan.placement.precision.weights, each)
        head = self._interpolate(logits, self._prices.head_s)
        head_share = self._share_streaming("bf16", logits)
        matrices = parts * self._interpolate(each, blocks._matrices_s)
        streaming, mean, busiest, exchanges = (
            parts * np.interp(each, routed.tokens, seconds)
            for seconds in (routed.streaming_s, routed.mean_s, routed.busiest_s, routed.exchanges_s)
        )
        cache, prompts_s = self.attention_s("decode", decodes), self.attention_s("prefill", prompts)
        all_reduces = parts * self._interpolate(each, blocks._all_reduces_s)
        if parts == 2:  # one half computes meanwhile
            exchanges = np.maximum(
                exchanges - (matrices + busiest + cache + prompts_s + all_reduces), 0.0
            )
        own, waiting = self._host_s(decodes, prompts), busiest - mean
        if self.plan.placement.layout.pp > 1:
            layers = matrices + busiest + cache + prompts_s + all_reduces + exchanges
            all_reduces = all_reduces + self._interpolate(tokens, self._sends_s)
            alone = layers + head + own + self._interpolate(tokens, self._sends_s)
            waiting = waiting + self._pipeline_wait_s(alone, layers, head, own)
        found = Terms(
            weights=matrices * share + head * head_share + streaming,
            products=matrices * (1 - share) + head * (1 - head_share) + mean - streaming,
            cache=cache,
            prompts=prompts_s,
            waiting=waiting,
            exchanges=exchanges,
            all_reduces=all_reduces,
            host=own,
        )
        passes = (decodes, prompts, prompt_tokens), (decodes + np.ceil(prompts), 0 * prompts, 0.0)
        for (curve, times), batch in zip(self._passes, passes, strict=False):
            added = curve.terms(*batch)
            found = Terms(*(one + times * more for one, more in zip(found, added, strict=True)))
        return found

    def _host_s(self, decodes: Floats, prompts: Floats) -> Floats:
        """The engine's own seconds."""
        return self._prices.overheads_s(decodes + np.ceil(prompts), np.minimum(prompts, 1.0))

    def _interpolate(self, tokens: Floats, seconds: Floats) -> Floats:
        return np.interp(tokens, self._grid, seconds)
