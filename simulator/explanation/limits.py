"""Limits of a token's time: how much less the same steps take with a faster part of the machine, or
a faster engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from simulator.config.deployment import DeploymentSpec
from simulator.config.host import HostRates
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan, make_plan
from simulator.engine.experts_table import Lockstep
from simulator.explanation.sample import SampledStep
from simulator.step.operations import step_operations
from simulator.step.prices import Prices

TWICE = 2.0
"""Factor on a resource that is tried: from one generation of GPUs, NVLink or InfiniBand to the
next."""
_LITTLE = 1.02
"""Factor by which elasticities are found: small enough that what it does is in proportion to it,
and large beside rounding."""


class Faster(NamedTuple):
    """Placements of one pool on machines of which one resource is faster."""

    little: Placement
    """With the resource faster by little, for its elasticity."""
    twice: Placement
    """With the resource twice as fast."""


class Limits(NamedTuple):
    """Limits of some steps."""

    shares: dict[str, float]
    """Share of each limit in the steps' time (:data:`~simulator.results.explained.LIMITS`); they
    add up to 1."""
    doubled: dict[str, float]
    """Share of the time that each resource, twice as fast, saves."""


def list_resources(plan: DeploymentPlan) -> Iterator[str]:
    """List the resources of a deployment that may be faster
    (:data:`~simulator.results.explained.RESOURCES`); none where times were measured as a whole.
    """
    pools = [pool.placement for pool in plan.pools]
    if any(isinstance(placed.calibration, HostRates) for placed in pools):
        return
    yield from ("memory", "arithmetic", "kernels")
    if plan.num_gpus > 1 and (plan.prefill or max(one.layout.num_gpus for one in pools) > 1):
        yield from ("network", "latency")
    yield "engine"
    if plan.spec.offload is not None or plan.spec.kv_tiers:
        yield "below"


def speed_up(spec: DeploymentSpec, resource: str, factor: float) -> tuple[str, float]:
    """Find the key of a deployment, as a dotted path, and its value with which a resource is so
    many times as fast as it is.
    """
    if resource == "network":
        return "network_speed", spec.network_speed * factor
    return f"speeds.{resource}", getattr(spec.speeds, resource) * factor


def place_faster(plan: DeploymentPlan, folder: Path) -> dict[str, tuple[Faster, ...]]:
    """Place a deployment on machines of which one resource is faster: the placements of its pools,
    in their order, by resource.

    Args:
        folder: what paths in the deployment are relative to.
    """

    def place(resource: str, factor: float) -> list[Placement]:
        key, value = speed_up(plan.spec, resource, factor)
        table, _, name = key.rpartition(".")
        changed = plan.spec.speeds.model_copy(update={name: value}) if table else value
        spec = plan.spec.model_copy(update={table or name: changed})
        made = make_plan(spec, plan.placement.seed, plan.name, folder)
        return [
            _share_replays(usual.placement, pool.placement)
            for usual, pool in zip(plan.pools, made.pools, strict=True)
        ]

    return {
        resource: tuple(map(Faster, place(resource, _LITTLE), place(resource, TWICE)))
        for resource in list_resources(plan)
    }


def _share_replays(usual: Placement, placed: Placement) -> Placement:
    """Let a placement on a faster machine replay its experts' cache where the usual one does."""
    if usual.offload is None or placed.offload is None:
        return placed
    return replace(placed, offload=usual.offload.with_rates(placed.offload.rates))


def find_limits(
    usual: Placement, faster: Mapping[str, Faster], step: SampledStep, phases: Mapping[str, float]
) -> Limits:
    """Find what limits steps of one kind, from one that stands for them.

    A resource's share is the elasticity of their time to it, phase by phase. Were all resources
    twice as fast, each phase would take half, so that the shares add up to 1 (Euler's theorem on
    homogeneous functions) but for the size of the change that finds them, which they are divided
    by.

    Args:
        phases: seconds of the steps by phase.
    """
    total_s, usual_s = sum(phases.values()), _price_phases(usual, step)
    before_s = sum(usual_s.values())

    def save(placed: Placement) -> float:
        """Share that is saved; phases that the step has none of as the others."""
        after_s = _price_phases(placed, step)
        others = 1.0 - sum(after_s.values()) / before_s
        saved_s = sum(
            seconds * (1.0 - after_s[phase] / usual_s[phase] if usual_s[phase] > 0.0 else others)
            for phase, seconds in phases.items()
        )
        return max(0.0, saved_s / total_s)

    elastic = {resource: save(placed.little) for resource, placed in faster.items()}
    total = sum(elastic.values())
    if not total > 0.0:
        return Limits({"measured": 1.0}, {})
    return Limits(
        {resource: share / total for resource, share in elastic.items()},
        {resource: save(placed.twice) for resource, placed in faster.items()},
    )


def _price_phases(placement: Placement, step: SampledStep) -> dict[str, float]:
    """Price a step by phase, in seconds."""
    prices = Prices(placement, int(step.batch.tokens_d.max()))
    program = step_operations(prices, step.batch, 0)
    return Lockstep(program, placement.layout.num_ranks).run()
