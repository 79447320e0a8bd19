"""What a plan takes for granted that its author may not know."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.config.deployment import DeploymentSpec
from simulator.config.engine import find_engine
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


_BEFORE = (
    '{ kind = "chunked", token_budget = 8192, max_sequences = 256, reserve_full_isl = false, '
    "watermark = 0.01 }"
)
"""The scheduling of every deployment that names none, up to schema 2 of results."""


def scheduling_note(specs: Sequence[DeploymentSpec], plans: Sequence[DeploymentPlan]) -> list[str]:
    """How the engines of deployments without a scheduling of their own batch, and what restores
    what was taken for them once; empty where all have one.

    Args:
        specs: as they were written.
    """
    found: dict[str, list[str]] = {}
    for spec, plan in zip(specs, plans, strict=True):
        if spec.scheduling is None:
            engine = find_engine(spec.engine)
            name = spec.engine if engine is None else engine.title
            rules = plan.rules
            text = (
                f"{name} on {plan.accelerator.title}: {(plan.spec.scheduling or {})['kind']}, "
                f"{rules.token_budget:,} tokens a step, {rules.max_sequences:,} sequences"
            )
            found.setdefault(text, []).append(plan.name)
    if not found:
        return []
    texts = "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())
    return [
        f"scheduling is the engine's own where none is written: {texts}. Before, it was scheduling "
        f"= {_BEFORE} for all"
    ]
