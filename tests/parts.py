"""Plans that differ from another one in fields of their parts."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan, Serving


def change_plan(plan: DeploymentPlan, **changes: Any) -> DeploymentPlan:
    """A plan with some fields changed, each in the part that has it."""
    placed, served = (
        {field.name: changes.pop(field.name) for field in fields(part) if field.name in changes}
        for part in (Placement, Serving)
    )
    return replace(
        plan,
        placement=replace(plan.placement, **placed),
        serving=replace(plan.serving, **served),
        **changes,
    )
