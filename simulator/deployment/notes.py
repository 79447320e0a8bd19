"""Notes about defaults of a plan, and descriptions of its policies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import Policy
from simulator.config.accelerator import list_odd
from simulator.config.cluster import list_odd_wires
from simulator.config.engine import find_engine
from simulator.config.host import HostRates
from simulator.config.offload import OffloadSpec
from simulator.config.routing import routing_note
from simulator.config.speeds import Speeds
from simulator.deployment.fits import list_unseen
from simulator.deployment.memory import memory_rules, start_probability
from simulator.deployment.offload_text import describe_offload
from simulator.deployment.plan import DeploymentPlan
from simulator.deployment.splits import refined_block
from simulator.workload.traces import RequestTrace


def notes_of(plan: DeploymentPlan) -> list[str]:
    """Write a sentence for each default that matters, for each setting without effect, for what is
    slower than usual or far from every machine, and for a release that was not measured.
    """
    placement = plan.placement
    slower = []
    if plan.spec.speeds == Speeds():  # else numbers are not those of a file
        accelerator = placement.accelerator
        slower += [*list_odd(accelerator, accelerator.name), *list_odd_wires(placement.cluster)]
    slower += _degraded_note(plan)
    if release := list_unseen(plan).get("release"):
        slower.append(f"{release}; bands are those of whole releases that were left out")
    slower += _format_note(plan)
    if module := describe_module(plan):
        slower.append(f"{plan.name}{module}")
    if placement.experts is None:
        return slower
    name = placement.model.title or placement.model.name
    found = [
        routing_note(name, placement.experts.routing_source),
        _copies_note(plan),
        _block_note(plan),
        describe_offload(placement),
    ]
    return [note for note in found if note is not None] + slower


def describe_module(plan: DeploymentPlan) -> str:
    """Describe the memory of a drafting module; empty where there is none."""
    capacity = plan.serving.capacity
    if not capacity.module_bytes:
        return ""
    return (
        f": the module that drafts takes {capacity.module_bytes / 1e9:.3g} GB of weights on a GPU, "
        f"and {capacity.module_token_bytes:,.0f} of the "
        f"{capacity.cache.bytes_per_token:,.0f} bytes that a token has in the cache"
    )


_SLOWER = {
    "compute": "computes at {:g} % of its usual speed",
    "scale_up": "has {:g} % of its wires inside the fast domain",
    "scale_out": "has {:g} % of its wires between domains",
}
"""Words for what is slower, by key of :class:`~simulator.config.failures.Degraded`."""

_ANOTHER = "is of another kind, {} (utilisation is told of the cluster's own peaks)"


def _degraded_note(plan: DeploymentPlan) -> list[str]:
    """Say what is slower than usual."""
    parts = []
    for one in plan.placement.cluster.degraded:
        whose = f"GPU {one.gpu}" if one.gpu is not None else "every GPU"
        whose = f"each GPU of node {one.node}" if one.node is not None else whose
        shares = {key: getattr(one, key) for key in _SLOWER}
        slower = [_ANOTHER.format(one.accelerator)] if one.accelerator else []
        slower += [_SLOWER[key].format(100 * share) for key, share in shares.items() if share < 1]
        since = f" from {one.at_s:g} s" if one.at_s else ""
        until = f" until {one.until_s:g} s" if one.for_s is not None else ""
        parts.append(f"{whose} {' and '.join(slower)}{since}{until}")
    return [f"{plan.name}: {'; '.join(parts)}"] if parts else []


def start_notes(plan: DeploymentPlan, longest_tokens: int, part: str = "") -> list[str]:
    """Write a sentence where a pool may not start, from how far engines' logs are from the counted
    memory.

    Args:
        part: text behind the deployment's name, such as ``, prefill``.
    """
    capacity = plan.serving.capacity
    probability = start_probability(capacity, longest_tokens)
    if probability >= _STARTS:
        return []
    low, high = (edge / 1e9 for edge in capacity.off_bytes)
    needed = capacity.blocks_for(longest_tokens) * capacity.block_bytes / 1e9
    is_fitted = memory_rules(plan.spec.engine, plan.placement.accelerator).off_kind == "fitted"
    whose = "logs of engines" if is_fitted else "engines are assumed to"
    return [
        f"{plan.name}{part} may not start: {capacity.kv_bytes / 1e9:.1f} GB of a GPU are left for "
        f"the KV cache, the longest request takes {needed:.1f} GB, and {whose} have {low:+.1f} to "
        f"{high:+.1f} GB more, so that it starts with a probability of {probability:.0%}; "
        f"{_SURER[capacity.kind]} make it surer"
    ]


def limit_notes(plans: Iterable[DeploymentPlan], trace: RequestTrace) -> list[str]:
    """Write a sentence where engines go by ``max_tokens`` and nobody says them."""
    reads = [
        plan.name
        for plan in plans
        if plan.serving.rules.reserves_output or plan.serving.rules.output_share
    ]
    if not reads or "max_tokens" in trace.attributes:
        return []
    return [
        f"max_tokens of the requests are assumed: {', '.join(reads)} admit by them, and have each "
        "output's true length here, which no engine knows; give max_tokens in [workload], or a "
        "column of that name"
    ]


def refusal_notes(plan: DeploymentPlan, num_input: NDArray[np.int64]) -> list[str]:
    """Write a sentence where the engine refuses prompts, with what would take them."""
    rules = (plan.prefill or plan).serving.rules
    refused = num_input > rules.longest_prompt
    if not refused.any():
        return []
    return [
        f"{plan.name} refuses {refused.sum():,} of {len(num_input):,} requests: their prompts are "
        f"longer than a step's {rules.token_budget:,} tokens (up to {num_input.max():,}), and are "
        "not computed in chunks; chunked_prompts = true in its scheduling takes them, or "
        f"token_budget = {num_input.max()}"
    ]


_SURER = {
    "of_total": "fewer max_sequences, a larger memory_fraction, or more GPUs",
    "before_loading": "a larger memory_fraction, or more GPUs",
    "left": "a larger free_memory_fraction, or more GPUs",
}
"""Settings that leave more for the KV cache, by the rule that divides memory."""


def _copies_note(plan: DeploymentPlan) -> str | None:
    """Note that ``eplb`` without slots makes no copies of hot experts, which it is known for."""
    policy, moe, experts = plan.spec.placement, plan.placement.model.moe, plan.placement.experts
    if experts is None or moe is None or policy.get("kind") != "eplb":
        return None
    num_slots = experts.placed.expert_LP.shape[1]
    if "num_slots" in policy or num_slots > moe.num_experts:
        return None
    return (
        f"{plan.name}: placement 'eplb' without num_slots has a slot for each of the "
        f"{moe.num_experts} experts, so that no expert is copied; num_slots = "
        f"{num_slots + plan.placement.layout.ep} would give every rank one slot for a copy"
    )


def _block_note(plan: DeploymentPlan) -> str | None:
    """Note that scales are refined where kernels take scales of whole blocks only."""
    placement = plan.placement
    block = refined_block(plan.spec.engine, placement.model, placement.layout, placement.precision)
    if block is None:
        return None
    part = (
        placement.model.moe.intermediate_size // placement.layout.moe_tp
        if placement.model.moe
        else 0
    )
    return (
        f"{plan.name}: a rank's part of an expert is {part} wide, for which the engine refines the "
        f"scales to blocks of {block}; Triton's kernels alone take them, and DeepGEMM, CUTLASS and "
        "FlashInfer do not, which the price does not contain"
    )


def _format_note(plan: DeploymentPlan) -> list[str]:
    """Note that a machine was timed in one format of weights, and prices others like it."""
    rates, precision = plan.placement.calibration, plan.placement.precision
    if not isinstance(rates, HostRates):
        return []
    others = dict.fromkeys((precision.weights, precision.experts))
    others.pop(rates.host.dtype, None)
    if not others:
        return []
    return [
        f"{plan.name}: products of matrices in {' and '.join(others)} take as long here as in "
        f"{rates.host.dtype}, in which '{rates.host.machine}' was timed; what the weights take of "
        "its memory and caches differs"
    ]


_STARTS = 0.95
"""Probability of starting below which a deployment is noted."""


def default_notes(plans: Iterable[DeploymentPlan]) -> list[str]:
    """Describe the scheduling and the KV caches of pools whose engine decides what files leave
    open.
    """
    found: dict[str, list[str]] = {}
    for plan in plans:
        for pool in plan.pools:
            engine, rules = find_engine(pool.spec.engine), pool.serving.rules
            if engine is None:
                continue
            part = ", prefill" if pool is plan.prefill else ""
            cache = f"{pool.serving.capacity.kv_bytes / 1e9:.1f} GB of KV cache a GPU"
            text = (
                f"{(pool.spec.scheduling or {})['kind']}, {rules.token_budget:,} tokens a step, "
                f"{rules.max_sequences:,} sequences, by the file's keys and else as {engine.title} "
                f"starts on {pool.placement.accelerator.title}"
            )
            found.setdefault(text, []).append(f"{plan.name}{part} ({cache})")
    return [f"scheduling of {', '.join(names)}: {text}" for text, names in found.items()]


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
