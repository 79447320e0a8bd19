"""Plans of a table, and plans that differ from another one in fields of their parts."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from simulator.base.frozen import validate
from simulator.config.deployment import DeploymentSpec
from simulator.deployment.placement import Placement
from simulator.deployment.plan import DeploymentPlan, Serving, make_plan


def freeze(table: dict[str, Any], seed: int = 0, folder: Path = Path()) -> DeploymentPlan:
    """The plan of a deployment; errors call its file ``test``."""
    spec = validate(DeploymentSpec, {"name": "tested", **table}, "test")
    return make_plan(spec, seed, "test", folder)


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
