"""Limits of the time in which ranks compute: how much shorter faster memory, or faster arithmetic,
would make it.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.base.plugins import build
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.host import HostRates
from simulator.deployment.plan import DeploymentPlan
from simulator.explanation.causes import sum_computing
from simulator.explanation.sample import SampledStep
from simulator.step.operations import step_operations
from simulator.step.prices import Prices

_FASTER = 1.02
"""Factor on a peak rate: small enough that what it does is in proportion to it, and large beside
rounding."""
_RATES = {
    "memory": ("memory_bytes_per_s",),
    "flops": ("bf16_flops_per_s", "fp8_flops_per_s", "int8_flops_per_s", "fp4_flops_per_s"),
}
"""Peak rates of an accelerator by the limit that they are."""


def find_limits(plan: DeploymentPlan, step: SampledStep) -> dict[str, float]:
    """Divide the seconds in which ranks compute in a step by what limits them, in shares of 1.

    A share is the elasticity of the seconds to the rate: the part that would be halved by a rate
    twice as high, as far as the present one tells. ``fixed`` is what neither would shorten. Times
    of a machine are not divided.
    """
    if isinstance(plan.placement.calibration, HostRates):
        return {"measured": 1.0}
    accelerator = plan.placement.accelerator
    base_s = _sum_seconds(plan, accelerator, step)
    shares = {}
    for limit, names in _RATES.items():
        rates = {name: getattr(accelerator, name) for name in names}
        faster = {name: rate * _FASTER for name, rate in rates.items() if rate is not None}
        changed_s = _sum_seconds(plan, accelerator.model_copy(update=faster), step)
        shares[limit] = max(0.0, (1 - changed_s / base_s) / (1 - 1 / _FASTER)) if base_s else 0.0
    most = max(1.0, sum(shares.values()))
    shares = {limit: share / most for limit, share in shares.items()}
    return {**shares, "fixed": max(0.0, 1.0 - sum(shares.values()))}


def _sum_seconds(plan: DeploymentPlan, accelerator: AcceleratorSpec, step: SampledStep) -> float:
    """Sum the seconds in which an accelerator with other peaks computes in a step, with all experts
    in its memory.
    """
    compute = build("cost.compute", plan.spec.compute or {}, f"deployment '{plan.name}'").prepare(
        accelerator, plan.placement.calibration
    )
    placement = replace(plan.placement, accelerator=accelerator, compute=compute, offload=None)
    prices = Prices(placement, int(step.batch.tokens_d.max()))
    return sum_computing(step_operations(prices, step.batch, 0))
