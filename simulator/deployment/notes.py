"""What a plan takes for granted that its author may not know."""

from __future__ import annotations

from simulator.config.routing import routing_note
from simulator.deployment.plan import DeploymentPlan


def notes_of(plan: DeploymentPlan) -> list[str]:
    """A sentence for each default that decides, and for each setting without effect."""
    if plan.experts is None:
        return []
    name = plan.model.title or plan.model.name
    found = [routing_note(name, plan.experts.routing_source), _copies_note(plan)]
    return [note for note in found if note is not None]


def _copies_note(plan: DeploymentPlan) -> str | None:
    """``eplb`` is known for its copies of hot experts, and makes none unless it is given slots."""
    placement, moe = plan.spec.placement, plan.model.moe
    if plan.experts is None or moe is None or placement.get("kind") != "eplb":
        return None
    num_slots = plan.experts.placed.expert_LP.shape[1]
    if "num_slots" in placement or num_slots > moe.num_experts:
        return None
    return (
        f"{plan.name}: placement 'eplb' without num_slots has a slot for each of the "
        f"{moe.num_experts} experts, so that no expert is copied; num_slots = "
        f"{num_slots + plan.layout.ep} would give every rank one slot for a copy"
    )
