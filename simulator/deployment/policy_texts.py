"""Descriptions of a plan's policies for people, as they stand in ``run.json`` and on pages."""

from __future__ import annotations

from simulator.base.frozen import Policy
from simulator.config.offload import OffloadSpec
from simulator.deployment.plan import DeploymentPlan


def describe_policies(plan: DeploymentPlan) -> dict[str, str | None]:
    """Describe the policies of a plan by their family; ``None`` where one has nothing to do."""
    placement, spec = plan.placement, plan.spec
    experts = placement.experts
    return {
        "routing": policy_text(experts.routing) if experts else None,
        "routing_source": " ".join(experts.routing_source.split()) if experts else None,
        "reduction": policy_text(spec.reduction) if spec.reduction else None,
        "overflow": policy_text(spec.overflow) if spec.overflow else None,
        "placement": policy_text(spec.placement) if experts else None,
        "replica_choice": _describe_unless("turns", spec.replica_choice),
        "spilling": _describe_unless("none", spec.spilling),
        "offload": _offload_text(spec.offload) if spec.offload else None,
        "dispatch": _dispatch_text(plan),
        "topology": policy_text(placement.cluster.topology),
        "scheduling": _scheduling_text(plan),
        "order": _describe_unless("first_come", spec.order),
        "kv_tiers": "; ".join(policy_text(table) for table in spec.kv_tiers) or None,
        "balancing": policy_text(spec.balancing),
        "failures": "; ".join(policy_text(table) for table in spec.failures) or None,
        "recovery": policy_text(spec.recovery) if spec.failures else None,
        "scaling": _describe_unless("none", spec.scaling),
        "prefill_scaling": _describe_unless("none", spec.prefill.scaling) if spec.prefill else None,
        "speculation": policy_text(spec.speculation) if placement.drafts.num_tokens else None,
    }


def _offload_text(offload: OffloadSpec) -> str:
    """Describe where offloaded experts lie, and the GPU's cache of them."""
    missing = {None: "all missing ones are brought", 0: "missing ones are computed there"}
    limited = f"up to {offload.uploads} missing ones a layer and step are brought"
    parts = [
        f"in {offload.tier}",
        f"{offload.slots} of a layer cached by {policy_text(offload.caching)}",
        missing.get(offload.uploads, limited),
    ]
    if offload.bring_from_tokens is not None:
        parts.append(f"all are brought from {offload.bring_from_tokens} tokens a step on")
    if offload.prefetching["kind"] != "none":
        parts.append(f"fetched ahead by {policy_text(offload.prefetching)}")
    return ", ".join(parts)


def _describe_unless(usual: str, policy: Policy) -> str | None:
    """Describe a policy other than the usual one."""
    return None if policy["kind"] == usual else policy_text(policy)


def _scheduling_text(plan: DeploymentPlan) -> str:
    """Describe the scheduling policy with the keys that its file or its engine sets, and its two
    limits.
    """
    rules = plan.serving.rules
    limits = {"token_budget": rules.token_budget, "max_sequences": rules.max_sequences}
    return policy_text({**(plan.spec.scheduling or {}), **limits})


def policy_text(policy: Policy) -> str:
    """Describe a policy's table for people: ``lognormal (sigma 1.06, affinity 0.5)``.

    >>> policy_text({"kind": "lognormal", "sigma": 0.1, "persistence": {"0": 0.27, "15": 0.38}})
    'lognormal (sigma 0.1, persistence 0.27 at 0 and 0.38 at 15)'
    """

    def text(value: object) -> str:
        if not isinstance(value, dict):
            return str(value)
        return " and ".join(f"{one} at {key}" for key, one in value.items())

    fields = ", ".join(f"{key} {text(value)}" for key, value in policy.items() if key != "kind")
    return f"{policy['kind']} ({fields})" if fields else str(policy["kind"])


_OVERLAPS = {
    "none": "",
    "two_batch": ", hidden by two-batch overlap",
    "shared_experts": ", beside shared experts",
}


def _dispatch_text(plan: DeploymentPlan) -> str | None:
    placement = plan.placement
    if placement.experts is None:
        return None
    if not placement.layout.travels:
        return "none: every rank has every token; partial results are summed with all-reduce"
    overlap = _OVERLAPS[plan.spec.overlap]
    if plan.spec.exchange_chunks > 1:
        overlap += f", in {plan.spec.exchange_chunks} chunks"
    return (
        f"{policy_text(plan.spec.dispatch or {})}, {placement.precision.dispatch} "
        f"out, {placement.precision.combine} back{overlap}"
    )
