"""Rates that one replica carries, in closed form.

In the steady state a replica with ``b`` sequences decoding on each data-parallel rank, which get
``k`` tokens of a step each (1, and what is kept of a draft), starts ``b k / O`` prompts a step
(``O`` mean output tokens), so everything follows from ``b``: the step's seconds,
the time per token, the rate, the memory. The most that a replica carries is at the largest ``b``
that keeps the targets. Latencies are means without chance, so a replica is given the benefit of
``SLACK``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.engine import find_hand_over
from simulator.cost.engine_time import streams_s
from simulator.deployment.plan import DeploymentPlan
from simulator.planner.closed_form import Curve, Floats
from simulator.planner.shapes import ReplicaShape
from simulator.planner.space import Space
from simulator.planner.traffic import Traffic

SLACK = 1.5
"""Factor on latencies' targets in the optimistic reading: as much better than on average a
deployment may turn out."""
_BATCHES = 24
_HIGHEST_LOAD = 0.95
"""Share of what the engine could carry if requests came as evenly as they are served."""


class Rates(NamedTuple):
    """Requests a second that one replica carries, as estimated and read optimistically; 0 where a
    target cannot be kept.
    """

    likely: float
    most: float
    tpot_s: float
    ttft_s: float


class Limits(NamedTuple):
    """The tightest of the targets, as means."""

    ttft_s: float
    tpot_s: float


class Served(NamedTuple):
    """A replica under rising loads; ``[n]`` each."""

    rates: Floats
    """Requests a second."""
    tpot_s: Floats
    """0 where nothing is decoded."""
    ttft_s: Floats
    """0 where no prompts are computed."""
    possible: NDArray[np.bool_]
    """Whether it can go on like that."""
    batches: Floats
    """Sequences on a data-parallel rank; share of the time that it is busy where it only computes
    prompts."""


class Judge:
    """Judges shapes, one after the other, for one question."""

    def __init__(self, space: Space, traffic: Traffic) -> None:
        self.space = space
        self.traffic = traffic
        self.limits = _limits(space)
        self._curves: dict[ReplicaShape, Curve] = {}
        self._most_tokens = max(space.question.space.token_budgets)

    def curve(self, shape: ReplicaShape, plan: DeploymentPlan) -> Curve:
        """The shape's curve; shapes with the same kernels share them."""
        key = shape.kernels
        found = Curve(plan, self.traffic, self._most_tokens, self._curves.get(key))
        self._curves.setdefault(key, found)
        return found

    def serve(self, phase: str, plan: DeploymentPlan, curve: Curve, budget: int) -> Served:
        """A replica of a pool: of ``prefill``, ``decode``, or ``both``."""
        if phase == "decode":
            return self.decoding(plan, curve)
        return (self.prefilling if phase == "prefill" else self.both)(plan, curve, budget)

    def both(self, plan: DeploymentPlan, curve: Curve, budget: int) -> Served:
        """A replica that computes prompts and decodes."""
        batches, tpot_s, ttft_s, possible = self._loads(plan, curve, budget)
        return Served(self._rates(plan, batches, tpot_s), tpot_s, ttft_s, possible, batches)

    def _rates(self, plan: DeploymentPlan, batches: Floats, tpot_s: Floats) -> Floats:
        """Requests a second that so many sequences on a data-parallel rank make."""
        sequences = batches * plan.placement.layout.num_batches
        return np.asarray(sequences / (self.traffic.num_output * tpot_s))

    def _loads(
        self, plan: DeploymentPlan, curve: Curve, budget: int
    ) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
        """Sequences on a data-parallel rank, with seconds a token, to the first token, and whether
        the budget suffices.
        """
        traffic = self.traffic
        batches, drafts = self._batches(plan), plan.placement.drafts
        prompts = batches * drafts.mean_kept / traffic.num_output
        tokens = batches * (1 + drafts.num_tokens) + prompts * traffic.num_input
        splits = plan.serving.rules.mixes_phases
        if splits:
            step_s = curve.step_s(batches, prompts, traffic.num_input)
            stays = tokens <= budget * _HIGHEST_LOAD
            chunks = math.ceil(traffic.num_input / max(1.0, budget))
            full_s = curve.step_s(
                batches,
                np.full(len(batches), min(1.0, budget / traffic.num_input)),
                traffic.num_input,
            )
            first_s = full_s * chunks
            busy = tokens / budget
        else:
            decode_s = curve.step_s(batches, np.zeros(len(batches)), 0.0)
            # Prompts that came during a step share the next one, the ranks that got none idle: at
            # the least one prompt's time.
            coming = prompts * plan.placement.layout.num_batches
            together = np.clip(prompts, 1.0, max(1.0, budget / traffic.num_input))
            pause_s = (
                np.minimum(coming, 1.0)
                * self._prompts_s(curve, budget, together)
                * np.maximum(1.0, prompts / together)
            )
            step_s = decode_s + pause_s
            stays = np.full(len(batches), True)
            first_s = np.full(len(batches), self.alone_s(curve, budget)) + decode_s / 2
            busy = pause_s / step_s
        waits = step_s * (0.5 + plan.steps_ahead) + first_s * busy / (
            2 * np.maximum(1 - busy, 0.02)
        )
        engine = plan.placement.calibration.engine
        streams = batches * plan.placement.layout.num_batches
        ttft_s = engine.first_token_s + streams_s(streams, engine.stream_s) + first_s + waits
        return batches, step_s / drafts.mean_kept, ttft_s, stays & (busy < _HIGHEST_LOAD)

    def decoding(self, plan: DeploymentPlan, curve: Curve) -> Served:
        """A replica that only decodes."""
        batches = self._batches(plan)
        nothing = np.zeros(len(batches))
        tpot_s = curve.step_s(batches, nothing, 0.0) / plan.placement.drafts.mean_kept
        possible = np.full(len(batches), True)
        return Served(self._rates(plan, batches, tpot_s), tpot_s, nothing, possible, batches)

    def prefilling(self, plan: DeploymentPlan, curve: Curve, budget: int) -> Served:
        """A replica that only computes prompts."""
        prompt_s, alone_s = self.prompt_s(curve, budget), self.alone_s(curve, budget)
        busy = np.linspace(0.1, _HIGHEST_LOAD, _BATCHES)
        rates = busy * plan.placement.layout.num_batches / prompt_s
        ttft_s = (
            plan.placement.calibration.engine.first_token_s
            + find_hand_over(plan.spec.engine).handshake_s
            + alone_s
            + prompt_s * busy / (2 * (1 - busy))
        )
        return Served(rates, np.zeros(len(busy)), ttft_s, np.full(len(busy), True), busy)

    def prompt_s(self, curve: Curve, budget: int) -> float:
        """Seconds of a data-parallel rank for a prompt where steps are full."""
        together = max(1.0, budget / self.traffic.num_input)
        return float(
            curve.step_s(np.zeros(1), np.array([together]), self.traffic.num_input)[0] / together
        )

    def _prompts_s(self, curve: Curve, budget: int, together: Floats) -> Floats:
        """Seconds of a step with ``[n]`` prompts, in as many parts as the budget asks for."""
        parts = max(1.0, self.traffic.num_input / budget)
        return curve.step_s(
            np.zeros(len(together)), together / parts, self.traffic.num_input
        ) * math.ceil(parts)

    def alone_s(self, curve: Curve, budget: int) -> float:
        """Seconds of a prompt by itself."""
        parts = max(1.0, self.traffic.num_input / budget)
        return float(
            curve.step_s(np.zeros(1), np.array([1 / parts]), self.traffic.num_input)[0]
            * math.ceil(parts)
        )

    def _batches(self, plan: DeploymentPlan) -> Floats:
        capacity, traffic, pp = plan.serving.capacity, self.traffic, plan.placement.layout.pp
        held = capacity.blocks_for(round(traffic.num_input + traffic.num_output / 2))
        most = max(
            1,
            min(plan.serving.rules.max_sequences, int(capacity.num_blocks * _HIGHEST_LOAD / held))
            // pp,
        )
        return np.geomspace(0.25, most, _BATCHES)

    def best(self, served: Served) -> Rates:
        """The highest rate that keeps the targets; and that keeps them read optimistically."""

        def highest(slack: float) -> int:
            within = (served.tpot_s <= self.limits.tpot_s * slack) & (
                served.ttft_s <= self.limits.ttft_s * slack
            )
            kept = served.possible & within
            return int(np.argmax(np.where(kept, served.rates, -1.0))) if kept.any() else -1

        likely, most = highest(1.0), highest(SLACK)
        shown = likely if likely >= 0 else 0
        return Rates(
            float(served.rates[likely]) if likely >= 0 else 0.0,
            float(served.rates[most]) if most >= 0 else 0.0,
            float(served.tpot_s[shown]),
            float(served.ttft_s[shown]),
        )


def _limits(space: Space) -> Limits:
    targets, slo = space.question.targets, space.question.workload.slo
    has_slo = targets.attainment is not None
    ttft_s, tpot_s = (
        min([*limits.limits().values(), (has_slo and own_s) or math.inf])
        for limits, own_s in ((targets.ttft_s, slo.ttft_s), (targets.tpot_s, slo.tpot_s))
    )
    return Limits(ttft_s, tpot_s)
