"""A replica in the steady state: tokens a second and what its seconds go to, by sequences that it
holds, whatever the targets.

Sequences leave as fast as others come: with ``b`` of them decoding on a data-parallel rank, ``b /
O`` prompts start a step. Only the KV cache and the tokens that fit in a step limit ``b``: an
engine's limit on sequences is a setting, which one would raise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.deployment.plan import DeploymentPlan
from simulator.planner.closed_form import Curve, Floats, Terms
from simulator.planner.space import ReplicaShape
from simulator.planner.traffic import Traffic
from simulator.workload.traces import RequestTrace

_FULL = 0.95
"""Share of the cache's blocks and of a step's tokens that is used in the mean where requests do not
come evenly."""
_POINTS = 48
"""Loads on a replica's curve: neighbours differ by some 10 %."""
_LEAST = 0.25
"""Sequences on a GPU at the least load."""


class Loads(NamedTuple):
    """A replica under several loads; ``[n]`` each."""

    sequences: Floats
    """Sequences on a GPU."""
    step_s: Floats
    """Seconds a token of one user, prompts of others included."""
    tokens_per_s: Floats
    """Output tokens a second of a GPU."""
    terms: Floats
    """``[8, n]`` GPU-seconds of an output token, by :class:`Terms`."""
    fits: NDArray[np.bool_]
    """Whether the cache holds them and a step can take their tokens."""

    def select(self, n: int) -> Loads:
        """The ``n``-th load."""
        here = slice(n, n + 1)
        return Loads(
            self.sequences[here],
            self.step_s[here],
            self.tokens_per_s[here],
            self.terms[:, here],
            self.fits[here],
        )


@dataclass(frozen=True)
class Steady:
    """One shape with requests of one length."""

    shape: ReplicaShape
    split: str
    """The split in words."""
    curve: Curve
    traffic: Traffic
    budget: int
    """Tokens of a step on a data-parallel rank."""

    @property
    def plan(self) -> DeploymentPlan:
        """Plan of one replica."""
        return self.curve.plan

    @cached_property
    def most(self) -> float:
        """Sequences on a GPU for which the cache has room; 0 where the model's context is too short
        for one.
        """
        traffic, plan = self.traffic, self.plan
        longest = round(traffic.num_input + traffic.num_output)
        if (
            plan.placement.model.max_context_tokens is not None
            and longest > plan.placement.model.max_context_tokens
        ):
            return 0.0
        capacity = plan.serving.capacity
        outputs = traffic.num_output / 2
        if plan.serving.rules.reserves_output:
            limits = traffic.trace.attributes.get("max_tokens", traffic.trace.num_output)
            outputs = float(np.mean(limits[traffic.lead :]))
        held = min(capacity.blocks_for(round(traffic.num_input + outputs)), capacity.num_blocks)
        if capacity.blocks_for(longest) > capacity.num_blocks:
            return 0.0
        return max(1.0, capacity.num_blocks * _FULL / held) / plan.placement.layout.tp

    @cached_property
    def curve_points(self) -> Loads:
        """Loads from few sequences to as many as the cache holds."""
        return self.load(
            np.geomspace(min(_LEAST, self.most / 2), self.most, _POINTS)
            if self.most
            else np.zeros(0)
        )

    def load(self, sequences: Floats) -> Loads:
        """Loads with so many sequences on each GPU."""
        layout = self.plan.placement.layout
        ranks = sequences * layout.tp
        terms, stays = self._step(ranks)
        step_s = terms.total
        kept = self.plan.placement.drafts.mean_kept
        made = np.maximum(ranks * layout.attention_dp * kept, 1e-9)
        per_token = np.array(terms) * layout.num_ranks / made
        fits = stays & (sequences <= self.most * (1 + 1e-9))
        return Loads(sequences, step_s, made / layout.num_ranks / step_s, per_token, fits)

    def _step(self, ranks: Floats) -> tuple[Terms, NDArray[np.bool_]]:
        """Parts of a step with the prompts that come during it, for sequences on a data-parallel
        rank; and whether that can go on.
        """
        num_input, drafts = self.traffic.num_input, self.plan.placement.drafts
        prompts = ranks * drafts.mean_kept / self.traffic.num_output
        if self.plan.serving.rules.mixes_phases:
            tokens = ranks * (1 + drafts.num_tokens) + prompts * num_input
            stays = tokens <= self.budget * _FULL
            return self.curve.terms(ranks, prompts, num_input), stays
        nothing = np.zeros(len(ranks))
        decoding = self.curve.terms(ranks, nothing, 0.0)
        # Prompts that came during a step share the next one, the ranks that got none idle: at the
        # least one prompt's time.
        parts = max(1.0, num_input / self.budget)
        together = np.clip(prompts, 1.0, max(1.0, self.budget / num_input))
        pause = self.curve.terms(nothing, together / parts, num_input)
        times = (
            math.ceil(parts)
            * np.minimum(prompts * self.plan.placement.layout.attention_dp, 1.0)
            * np.maximum(1.0, prompts / together)
        )
        step = Terms(*(first + later * times for first, later in zip(decoding, pause, strict=True)))
        return step, pause.total * times < _FULL * step.total


def make_fixed_traffic(num_input: int, num_output: int) -> Traffic:
    """Requests that are all alike."""
    alike = np.full(2, num_input, dtype=np.int64), np.full(2, num_output, dtype=np.int64)
    return Traffic.measure(RequestTrace(np.arange(2.0), *alike, provenance="all alike"))
