"""Shares of the causes in each phase of a kind of steps, from a few that stand for all."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Ratio of the steps' seconds as they were priced to those with their prompts."""


def measure_shares(
    placement: Placement,
    sampled: Sequence[SampledStep],
    *,
    without_prompts: bool = False,
    was_slower: bool = False,
) -> Shares:
    """Measure the shares of causes in sampled steps of one kind, with all GPUs and wires as fast as
    usual.

    Args:
        without_prompts: whether the decodes of each step are priced alone.
        was_slower: whether the replica was slower than that, so that its ranks waited for more than
            what causes at the usual speed.
    """
    prices = _prepare_prices(placement, sampled)
    found, whole_s = [], 0.0
    for number, step in enumerate(sampled):
        rng, offset = _draw_offset(placement, number)
        batch = step.decodes if without_prompts and step.decodes is not None else step.batch
        found.append(find_causes(prices, batch, offset, rng))
        if without_prompts:
            whole_s += price_step(prices, step.batch, offset)
    if without_prompts or was_slower:
        waits_s = [one.phases["wait"] for one in found]
    else:
        waits_s = [step.wait_s / placement.drafts.slowdown for step in sampled]
    return _add_up(found, waits_s, whole_s)


class Slower(NamedTuple):
    """Shares of steps' seconds that GPUs and wires add since they are slower than usual."""

    gpus: float
    """Share that GPUs add, with wires as fast as usual."""
    wires: float
    """Share that wires add to that."""


def measure_slower(
    plan: DeploymentPlan, condition: Condition, sampled: Sequence[SampledStep]
) -> Slower:
    """Measure the shares of the sampled steps' seconds, prompts among them, that wires as fast as
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
                seconds += num_groups * price_step(prices, step.arrived.roll(first), offset)
        return seconds

    usual_s, slowed_s = add_up(usual), add_up(slowed)
    compute_s = add_up(degrade_placement(plan, condition.speed_up_wires()))
    gpus_s = max(0.0, min(compute_s, slowed_s) - usual_s)
    wires_s = max(0.0, slowed_s - usual_s) - gpus_s
    return Slower(_share(gpus_s, slowed_s), _share(wires_s, slowed_s))


def _prepare_prices(placement: Placement, sampled: Sequence[SampledStep]) -> Prices:
    return Prices(placement, max(int(one.arrived.tokens_d.max()) for one in sampled))


def _draw_offset(placement: Placement, number: int) -> tuple[np.random.Generator, int]:
    """Draw the first token of a sampled step in the pool of recorded choices; with the stream that
    it was drawn from.
    """
    rng = placement.rng("explanation", number)
    return rng, int(rng.integers(POOL_TOKENS))


def _add_up(found: Sequence[StepCauses], waits_s: Sequence[float], whole_s: float) -> Shares:
    """Add up the causes of several steps.

    Args:
        waits_s: seconds that each step's mean rank waited.
        whole_s: seconds of all steps with their prompts; 0 where none are left out.
    """
    total_s = sum(one.duration_s for one in found)
    wait_s, experts_s = sum(waits_s), sum(one.phases["experts"] for one in found)
    pairs = list(zip(found, waits_s, strict=True))
    uneven_s = sum(min(one.uneven_s, wait) for one, wait in pairs)
    chance_s = sum(min(one.chance_s, wait) for one, wait in pairs)
    jitter_s = min(sum(one.jitter_s for one in found), wait_s - uneven_s)
    exchange_s = sum(one.exchanges.total_s for one in found)
    collective_s = sum(one.collectives.total_s for one in found)
    layer_L, rank_R = (
        np.sum([getattr(one, name) for one in found], axis=0) for name in ("layer_L", "rank_R")
    )
    return Shares(
        phases={
            phase: _share(sum(one.phases[phase] for one in found), total_s) for phase in STEP_PHASES
        },
        below=_share(sum(one.below_s for one in found), experts_s),
        chance=_share(chance_s, wait_s),
        skew=_share(uneven_s - chance_s, wait_s),
        jitter=_share(jitter_s, wait_s),
        busiest=_share(sum(one.exchanges.busiest_s for one in found), exchange_s),
        latency=_share(sum(one.exchanges.latency_s for one in found), exchange_s),
        collective_latency=_share(sum(one.collectives.latency_s for one in found), collective_s),
        hidden=_share(sum(one.hidden_s for one in found), total_s),
        layer_L=layer_L / (layer_L.sum() or 1.0),
        rank_R=rank_R / (rank_R.mean() or 1.0),
        decodes=_share(total_s, whole_s) if whole_s else 1.0,
    )


def _share(part: float, whole: float) -> float:
    """Share of a part that is never more than the whole; 0 of nothing."""
    return min(1.0, part / whole) if whole > 0 else 0.0
