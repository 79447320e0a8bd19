"""Notes about defaults of a plan, and descriptions of its policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from simulator.base.arrays import Ints
from simulator.base.findings import Finding
from simulator.base.frozen import Policy
from simulator.config.accelerator import Speeds, list_odd
from simulator.config.cluster import list_odd_links
from simulator.config.deployment import OffloadSpec
from simulator.config.engine import find_engine
from simulator.config.host import HostRates
from simulator.config.model import routing_note
from simulator.deployment.fits import list_unseen
from simulator.deployment.memory import memory_rules, start_probability
from simulator.deployment.plan import DeploymentPlan
from simulator.deployment.splits import refined_block
from simulator.work.memory import expert_bytes
from simulator.workload.traces import RequestTrace

_STARTS = 0.95
"""Probability of starting below which a deployment is noted."""


def notes_of(plan: DeploymentPlan) -> Iterator[Finding]:
    """Find each default that matters, each setting without effect, what is slower than usual or far
    from every machine, and a release that was not measured.
    """
    placement = plan.placement
    if placement.experts is not None:
        name = placement.model.title or placement.model.name
        yield from routing_note(name, placement.experts.routing_source)
        yield from _find_no_copies(plan)
        yield from _find_refined_blocks(plan)
        yield from _find_offload(plan)
    if plan.spec.speeds == Speeds():  # else numbers are not those of a file
        yield from list_odd(placement.accelerator, placement.accelerator.name)
        yield from list_odd_links(placement.cluster)
    if placement.cluster.degraded:
        degraded = [one.model_dump() for one in placement.cluster.degraded]
        yield Finding("note.degraded", plan=plan.name, parts=degraded)
    if release := list_unseen(plan).get("release"):
        yield Finding("note.unseen_release", release=release)
    yield from _find_other_formats(plan)
    if plan.serving.capacity.module_bytes:
        yield Finding("note.module", plan=plan.name, module=describe_module(plan))


def describe_module(plan: DeploymentPlan) -> Finding | str:
    """Describe the memory of a drafting module; empty where there is none."""
    capacity = plan.serving.capacity
    if not capacity.module_bytes:
        return ""
    return Finding(
        "note.module_memory",
        weights_bytes=capacity.module_bytes,
        token_bytes=capacity.module_token_bytes,
        cache_token_bytes=capacity.cache.bytes_per_token,
    )


def start_notes(plan: DeploymentPlan, longest_tokens: int, part: str = "") -> Iterator[Finding]:
    """Find whether a pool may not start, from how far engines' logs are from the counted memory.

    Args:
        part: text behind the deployment's name, such as ``, prefill``.
    """
    capacity = plan.serving.capacity
    probability = start_probability(capacity, longest_tokens)
    if probability < _STARTS:
        yield Finding(
            "note.may_not_start",
            plan=plan.name + part,
            kv_bytes=capacity.kv_bytes,
            needed_bytes=capacity.blocks_for(longest_tokens) * capacity.block_bytes,
            off=memory_rules(plan.spec.engine, plan.placement.accelerator).off_kind,
            off_bytes=capacity.off_bytes,
            probability=probability,
            rule=capacity.kind,
        )


def limit_notes(plans: Iterable[DeploymentPlan], trace: RequestTrace) -> Iterator[Finding]:
    """Find engines that go by ``max_tokens`` where nobody says them."""
    rules = {plan.name: plan.serving.rules for plan in plans}
    reads = [name for name, one in rules.items() if one.reserves_output or one.output_share]
    if reads and "max_tokens" not in trace.attributes:
        yield Finding("note.assumed_max_tokens", plans=reads)


def refusal_notes(plan: DeploymentPlan, trace: RequestTrace) -> Iterator[Finding]:
    """Find prompts that the engine refuses, and what would take them; and requests beyond the
    model's context.
    """
    rules, num_input = (plan.prefill or plan).serving.rules, trace.num_input
    refused = num_input > rules.longest_prompt
    if refused.any():
        yield Finding(
            "note.refused",
            plan=plan.name,
            refused=refused.sum(),
            requests=len(num_input),
            token_budget=rules.token_budget,
            longest=num_input.max(),
        )
    context, tokens = plan.placement.model.max_context_tokens, num_input + trace.num_output
    if context is not None and (beyond := tokens > context).any():
        yield Finding(
            "note.too_long",
            plan=plan.name,
            beyond=beyond.sum(),
            requests=len(tokens),
            context=context,
            longest=tokens.max(),
        )


def _find_no_copies(plan: DeploymentPlan) -> Iterator[Finding]:
    """Find ``eplb`` without slots for copies of hot experts, which it is known for."""
    policy, moe, experts = plan.spec.placement, plan.placement.model.moe, plan.placement.experts
    if experts is None or moe is None or policy.get("kind") != "eplb":
        return
    slots = experts.placed.expert_LP.shape[1]
    if "num_slots" not in policy and slots <= moe.num_experts:
        more = slots + plan.placement.layout.ep
        yield Finding("note.no_copies", plan=plan.name, experts=moe.num_experts, slots=more)


def _find_refined_blocks(plan: DeploymentPlan) -> Iterator[Finding]:
    """Find scales that are refined where kernels take scales of whole blocks only."""
    placed = plan.placement
    block = refined_block(plan.spec.engine, placed.model, placed.layout, placed.precision)
    if block is not None:
        moe = placed.model.moe
        width = moe.intermediate_size // placed.layout.moe_tp if moe else 0
        yield Finding("note.refined_blocks", plan=plan.name, width=width, block=block)


def _find_offload(plan: DeploymentPlan) -> Iterator[Finding]:
    """Find what offloaded experts cost a sequence that is served alone."""
    placed, offload = plan.placement, plan.placement.offload
    if offload is None:
        return
    uses, rates = offload.replay(1), offload.rates
    size = expert_bytes(placed.model, placed.layout, placed.precision, placed.pruning)

    def measure(experts_SL: Ints) -> float:
        return float(experts_SL.sum(axis=1).mean()) * size

    yield Finding(
        "note.offload",
        plan=placed.name,
        slots=offload.rules.slots,
        experts=offload.num_experts,
        hit_rate=uses.hit_rate,
        brought_bytes=measure(uses.uploaded_SL + uses.ahead_SL),
        copy_bytes_per_s=rates.copy_bytes_per_s,
        below_bytes=measure(uses.below_SL),
        read_bytes_per_s=rates.read_bytes_per_s,
        in_vain_bytes=measure(uses.fetched_SL - uses.ahead_SL),
    )


def _find_other_formats(plan: DeploymentPlan) -> Iterator[Finding]:
    """Find weights in another format than that in which a machine was timed."""
    rates, precision = plan.placement.calibration, plan.placement.precision
    if not isinstance(rates, HostRates):
        return
    timed = rates.host.dtype
    others = [one for one in dict.fromkeys((precision.weights, precision.experts)) if one != timed]
    if others:
        machine = rates.host.machine
        yield Finding(
            "note.other_formats", plan=plan.name, others=others, timed=timed, machine=machine
        )


def default_notes(plans: Iterable[DeploymentPlan]) -> Iterator[Finding]:
    """Describe the scheduling and the KV caches of pools whose engine decides what files leave
    open.
    """
    found: dict[tuple[str, int, int, str, str], list[tuple[str, float]]] = {}
    for plan in plans:
        for pool in plan.pools:
            engine, rules = find_engine(pool.spec.engine), pool.serving.rules
            if engine is None:
                continue
            name = f"{plan.name}{', prefill' if pool is plan.prefill else ''}"
            kind, machine = (pool.spec.scheduling or {})["kind"], pool.placement.accelerator.title
            key = kind, rules.token_budget, rules.max_sequences, engine.title, machine
            found.setdefault(key, []).append((name, pool.serving.capacity.kv_bytes))
    for (kind, budget, sequences, title, machine), pools in found.items():
        yield Finding(
            "note.engine_defaults",
            pools=pools,
            scheduling=kind,
            token_budget=budget,
            max_sequences=sequences,
            engine=title,
            accelerator=machine,
        )


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
