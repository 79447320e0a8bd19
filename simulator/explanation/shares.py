"""Shares of the causes in each phase of a kind of steps, from a few that stand for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simulator.deployment.conditions import Condition, degrade_placement
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan
from simulator.explanation.causes import Floats, StepCauses, find_causes, price_step
from simulator.explanation.sample import SampledStep
from simulator.results.phases import STEP_PHASES
from simulator.step.prices import Prices


@dataclass(frozen=True)
class Shares:
    """Shares of causes over all sampled steps of one kind."""

    phases: dict[str, float]
    """Share of each phase in the steps' seconds, as they were priced."""
    below: float
    """Share of ``experts`` that experts below the GPU's memory add."""
    chance: float
    """Share of ``wait`` that experts cause by chance."""
    skew: float
    """Share of ``wait`` that experts cause beyond chance."""
    jitter: float
    """Share of ``wait`` for ranks that take longer at equal work."""
    busiest: float
    """Share of ``dispatch`` and ``combine`` that the busiest link adds."""
    latency: float
    """Share of ``dispatch`` and ``combine`` that latency adds."""
    collective_latency: float
    """Share of ``collective`` that is latency."""
    hidden: float
    """Ratio of the seconds of exchanges behind computation to those of the steps."""
    layer_L: Floats
    """Share of each MoE layer in what experts make ranks wait, ``[L]``."""
    rank_R: Floats
    """Ratio of each rank's time in experts to the mean rank's, ``[R]``."""
    decodes: float
    """Ratio of the steps' seconds as they were priced to those with their prompts, at most 1."""


def measure_shares(
    placement: Placement,
    sampled: Sequence[SampledStep],
    *,
    without_prompts: bool = False,
    was_slower: bool = False,
) -> Shares:
    """Measure the shares of causes in sampled steps of one kind, with all GPUs and links as fast as
    usual.

    Args:
        without_prompts: whether the decodes of each step are priced alone.
        was_slower: whether the replica was slower than that, so that its ranks waited for more than
            what causes at the usual speed, and its steps took longer.
    """
    prices = _prepare_prices(placement, sampled)
    found, wholes_s, owns = [], [], []
    is_pipeline = placement.layout.pp > 1
    for number, step in enumerate(sampled):
        rng, offset = _draw_offset(placement, number)
        batch = step.decodes if without_prompts and step.decodes is not None else step.batch
        found.append(find_causes(prices, batch, offset, rng))
        own_s = price_step(prices, step.batch, offset, with_drafts=False)
        whole_s = own_s if prices.module is None else price_step(prices, step.batch, offset)
        owns.append(own_s / whole_s)  # causes are those of the model's own pass
        # The run's own step is of all lanes of a pipeline.
        is_priced = without_prompts and (was_slower or is_pipeline)
        wholes_s.append(own_s if is_priced else step.duration_s * owns[-1])
    if without_prompts or was_slower:
        waits_s = [one.phases["wait"] for one in found]
    else:
        waits_s = [step.wait_s * own for step, own in zip(sampled, owns, strict=True)]
    return _add_up(found, waits_s, wholes_s)


class Slower(NamedTuple):
    """Shares of steps' seconds that GPUs and links add since they are slower than usual."""

    gpus: float
    """Share that GPUs add, with links as fast as usual."""
    wires: float
    """Share that links add to that."""


def measure_slower(
    plan: DeploymentPlan, condition: Condition, sampled: Sequence[SampledStep]
) -> Slower:
    """Measure the shares of the sampled steps' seconds, prompts among them, that links as fast as
    usual would save, and then GPUs.

    Prompts are as likely on any data-parallel rank as on any other, and may be on slower ones.
    """
    usual, slowed = plan.placement, degrade_placement(plan, condition)
    class_D, first_K = slowed.speed_classes
    by_class = list(zip(first_K.tolist(), np.bincount(class_D).tolist(), strict=True))

    def add_up(placement: Placement) -> float:
        prices, seconds = _prepare_prices(placement, sampled), 0.0
        for number, step in enumerate(sampled):
            offset = _draw_offset(usual, number)[1]
            for first, num_groups in by_class:
                seconds += num_groups * price_step(prices, step.batch.roll(first), offset)
        return seconds

    usual_s, slowed_s = add_up(usual), add_up(slowed)
    compute_s = add_up(degrade_placement(plan, condition.speed_up_links()))
    gpus_s = max(0.0, min(compute_s, slowed_s) - usual_s)
    wires_s = max(0.0, slowed_s - usual_s) - gpus_s
    return Slower(_share(gpus_s, slowed_s), _share(wires_s, slowed_s))


def _prepare_prices(placement: Placement, sampled: Sequence[SampledStep]) -> Prices:
    return Prices(placement, max(int(one.batch.tokens_d.max()) for one in sampled))


def _draw_offset(placement: Placement, number: int) -> tuple[np.random.Generator, int]:
    """Draw the first token of a sampled step in the pool of recorded choices; with the stream that
    it was drawn from.
    """
    rng = placement.rng("explanation", number)
    return rng, int(rng.integers(POOL_TOKENS))


def _add_up(
    found: Sequence[StepCauses], waits_s: Sequence[float], wholes_s: Sequence[float]
) -> Shares:
    """Add up the causes of several steps, each of which stands for as much time.

    Args:
        waits_s: seconds that each step's mean rank waited.
        wholes_s: seconds of each step with its prompts.
    """
    weights = [1.0 / whole_s for whole_s in wholes_s]

    def add(find: Callable[[StepCauses], float]) -> float:
        return sum(weight * find(one) for weight, one in zip(weights, found, strict=True))

    def add_waits(find: Callable[[StepCauses], float]) -> float:
        triples = zip(weights, found, waits_s, strict=True)
        return sum(weight * min(find(one), wait_s) for weight, one, wait_s in triples)

    total = add(lambda one: one.duration_s)
    wait, experts = add_waits(lambda one: math.inf), add(lambda one: one.phases["experts"])
    uneven, chance = add_waits(lambda one: one.uneven_s), add_waits(lambda one: one.chance_s)
    jitter = min(add(lambda one: one.jitter_s), wait - uneven)
    exchanges = add(lambda one: one.exchanges.total_s)
    collectives = add(lambda one: one.collectives.total_s)
    layer_L, rank_R = (
        np.sum([weight * one for weight, one in zip(weights, of_steps, strict=True)], axis=0)
        for of_steps in ([one.layer_L for one in found], [one.rank_R for one in found])
    )
    return Shares(
        phases={
            phase: _share(add(lambda one: one.phases[phase]), total)  # noqa: B023 - called at once
            for phase in STEP_PHASES
        },
        below=_share(add(lambda one: one.below_s), experts),
        chance=_share(chance, wait),
        skew=_share(uneven - chance, wait),
        jitter=_share(jitter, wait),
        busiest=_share(add(lambda one: one.exchanges.busiest_s), exchanges),
        latency=_share(add(lambda one: one.exchanges.latency_s), exchanges),
        collective_latency=_share(add(lambda one: one.collectives.latency_s), collectives),
        hidden=_share(add(lambda one: one.hidden_s), total),
        layer_L=layer_L / (layer_L.sum() or 1.0),
        rank_R=rank_R / (rank_R.mean() or 1.0),
        decodes=min(1.0, total / len(found)),
    )


def _share(part: float, whole: float) -> float:
    """Share of a part that is never more than the whole; 0 of nothing."""
    return min(1.0, part / whole) if whole > 0 else 0.0
