"""Calibration entries that a plan's prices, error bands and warnings are based on."""

from __future__ import annotations

from simulator.config.calibration import Fit, PriceKey
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.dispatch import kernels_of


def fits_of(plan: DeploymentPlan) -> dict[str, Fit]:
    """Find the calibration entries that price a plan, by what they price (``attention in decode``).

    Raises:
        UserError: if a machine's calibration has no collectives of so many ranks.
    """
    return plan.placement.calibration.list_fits(price_key_of(plan))


def price_key_of(plan: DeploymentPlan) -> PriceKey:
    """Describe a plan by what its calibration entries are looked up with."""
    placement = plan.placement
    experts, precision = placement.experts, placement.precision
    return PriceKey(
        weights=precision.weights,
        experts=None if experts is None else precision.experts,
        num_experts=None if placement.model.moe is None else placement.model.moe.num_experts,
        travels=experts is not None and placement.layout.travels,
        is_split=placement.layout.tp > 1,
        kernels=() if experts is None else kernels_of(experts.dispatch),
        cache=precision.kv,
        is_latent=placement.model.has_latent_cache,
        pruning=plan.spec.pruning,
    )
