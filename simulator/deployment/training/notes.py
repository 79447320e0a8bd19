"""Notes on a training: what its numbers assume."""

from __future__ import annotations

from simulator.config.host import HostRates
from simulator.config.routing import routing_note
from simulator.deployment.training.plan import TrainingPlan
from simulator.deployment.training.quality import TokensToLoss


def list_training_notes(plan: TrainingPlan, target: TokensToLoss | None = None) -> list[str]:
    """List what the simulated step of a deployment assumes, a sentence each.

    Args:
        target: loss that it trains to, where there is one.
    """
    spec, model, experts = plan.spec, plan.model, plan.placement.experts
    notes = [_tell_backward(plan)]
    if experts is not None and spec.routing is None:
        note = routing_note(model.title or model.name, experts.routing_source)
        if note is not None:
            notes.append(note)
        notes.append(
            f"{plan.name}: experts are chosen as when the trained model serves; a training "
            "balances them with its own loss (even ones: "
            "--set \"deployments.*.routing={ kind = 'uniform' }\")"
        )
    if spec.dtype in ("fp8", "fp8_block"):
        notes.append(
            f"{plan.name}: activations count as kept in bf16, also where {spec.dtype} recipes keep "
            "inputs of matrices in 8 bits, and 8-bit copies of weights do not count"
        )
    if target is not None and target.outside:
        notes.append(
            f"{plan.name}: the scaling law is asked beyond what it was fitted on: "
            f"{'; '.join(target.outside)}"
        )
    if plan.placement.drops_pairs:
        notes.append(
            f"{plan.name}: FLOPs of dropped token-expert pairs do not count in MFU, and what "
            "dropping does to the loss is not told"
        )
    layout = plan.placement.layout
    if experts is not None and layout.ep > 1 and not layout.travels:
        notes.append(
            f"{plan.name}: with ep = tp = {layout.tp} all ranks of a block hold the same tokens; "
            "their experts' outputs are added up, no tokens are dispatched"
        )
    return notes


def _tell_backward(plan: TrainingPlan) -> str:
    """Tell how long a backward pass takes, and how that is known."""
    rates, spec = plan.placement.calibration, plan.spec
    if isinstance(rates, HostRates):
        ratios = rates.training.backward
        said = ", ".join(f"{ratio:.2f} times of {phase}" for phase, ratio in ratios.items())
        return (
            f"{plan.name}: a backward pass takes {said} in a forward pass that keeps nothing, as "
            f"measured on '{rates.host.machine}'"
        )
    return (
        f"backward matrix products take {spec.backward_ratio:g} times the forward ones: assumed, "
        "backward kernels were not measured (--set deployments.*.backward_ratio=2.3 tries another)"
    )
