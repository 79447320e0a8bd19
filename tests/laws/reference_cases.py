"""Deployments and traces drawn by seed for the slow reference: whatever a scheduler can meet."""

import dataclasses

import numpy as np

from simulator.base.plugins import build
from simulator.policies.kv_tiers import Tier
from simulator.policies.scheduling import RANK_CHOICES
from simulator.policies.speculation import Drafts
from tests.laws.deployments import BALANCERS, shrink_cache
from tests.laws.failing import draw_changes, with_changes
from tests.parts import change_plan

SPLITS = [
    ("dense", {"tp": 2}),
    ("dense", {"attention_dp": 4}),
    ("dense", {"pp": 2}),
    ("dense", {"pp": 3, "attention_dp": 2}),
    ("sliding-dense", {"tp": 2}),
    ("state-moe", {"tp": 2}),
]
LONGEST, MOST = {"kind": "longest_prefix"}, [3, 128]
DRAFTS = [Drafts((0.8,), 1), Drafts((0.9, 0.6, 0.3), 1, 512, 1e-4)]


def draw_case(tiny, seed):
    """A plan, a trace and the seconds from clients to the scheduler: any split, scheduler,
    balancer and number of replicas, one pool or two, open or closed loops, with or without
    prefixes, drafts and failures, caches that are large or hardly hold two sequences.
    """
    rng = np.random.default_rng([seed, 5])
    trace = draw_trace(tiny, rng)
    plan = draw_plan(tiny, rng)
    if plan.placement.layout.pp == 1 and rng.random() < 0.25:
        plan = change_plan(plan, drafts=DRAFTS[rng.integers(len(DRAFTS))])
    if rng.random() < 0.7:
        longest = int((trace.num_input + trace.num_output).max())
        longest += plan.placement.drafts.num_tokens
        plan = shrink_cache(plan, longest, float(rng.uniform(1.0, 4.0)))
    if rng.random() < 0.3:
        end_s = float(np.nanmax(trace.arrival_s)) + 0.05 * rng.random()
        plan = with_changes(plan, *draw_changes(plan, seed, end_s))
    plan, trace = draw_order(plan, trace, np.random.default_rng([seed, 6]))
    plan = draw_tiers(plan, trace, np.random.default_rng([seed, 7]))
    plan = draw_rules(plan, np.random.default_rng([seed, 8]))
    trace = draw_limits(trace, np.random.default_rng([seed, 9]))
    trace = draw_clients(trace, np.random.default_rng([seed, 10]))
    return plan, trace, float(rng.choice([0.0, 0.001, 0.02]))


def draw_limits(trace, rng):
    """With outputs that end before the engine expects it, some or all of them."""
    if rng.random() < 0.7:
        return trace
    more = rng.integers(rng.choice([1, 40, 500]), size=trace.num_requests)
    attributes = {**trace.attributes, "max_tokens": trace.num_output + more}
    return dataclasses.replace(trace, attributes=attributes)


def draw_clients(trace, rng):
    """With clients of a closed loop that need time to send, or begin at different times."""
    start, send_s = str(rng.choice(["at_once", "spread"])), float(rng.choice([0.0, 1e-4, 0.003]))
    if trace.concurrency is None or rng.random() < 0.4:
        return trace
    return dataclasses.replace(trace, start=start, send_s=send_s)


def draw_rules(plan, rng):
    """With steps that are formed ahead, and blocks that are freed in one of two ways."""
    rules = plan.serving.rules._replace(
        steps_ahead=int(rng.integers(2)),
        frees_partial_first=bool(rng.random() < 0.5),
        ignores_share=bool(rng.random() < 0.2),
        knows_ends=bool(rng.random() < 0.7),
        rank_choice=int(rng.integers(len(RANK_CHOICES))),
    )
    prefill = plan.prefill and draw_rules(plan.prefill, rng)
    return change_plan(plan, rules=rules, prefill=prefill)


def draw_order(plan, trace, rng):
    """By priority, with or without ageing, by what is cached, or as it was."""
    if rng.random() < 0.6:
        return plan, trace
    if rng.random() < 0.4:
        return with_order(
            plan, build("order", LONGEST | {"most": int(rng.choice(MOST))}, "test")
        ), trace
    ageing = {"ageing_s": float(rng.choice([0.01, 0.5]))} if rng.random() < 0.5 else {}
    order = build("order", {"kind": "priority", **ageing}, "test")
    plan = with_order(plan, order)
    priority = rng.integers(rng.integers(1, 5), size=trace.num_requests)
    return plan, dataclasses.replace(trace, attributes={"priority": priority})


def with_order(plan, order):
    """The same plan whose requests wait in another order, in both pools."""
    prefill = plan.prefill and change_plan(plan.prefill, order=order)
    return change_plan(plan, order=order, prefill=prefill)


def draw_tiers(plan, trace, rng):
    """With memory below the GPU, of any size and speed, or as it was."""
    if not trace.prefix_block_tokens or not plan.keeps_prefixes or rng.random() < 0.3:
        return plan
    capacity = (plan.prefill or plan).serving.capacity
    size = capacity.cache.bytes_per_token * trace.prefix_block_tokens
    tiers = tuple(
        Tier(
            size * float(rng.choice([1.5, 4.5, 30.5, 1000.5])),
            size / float(rng.choice([1e-6, 1e-3, 0.02])),
            size / float(rng.choice([1e-6, 1e-3, 0.02])),
            float(rng.choice([0.0, 0.005])),
        )
        for _ in range(rng.integers(1, 3))
    )
    if plan.prefill is None:
        return change_plan(plan, tiers=tiers)
    return dataclasses.replace(plan, prefill=change_plan(plan.prefill, tiers=tiers))


def draw_plan(tiny, rng):
    """A deployment that is made once, with other policies and numbers of replicas."""
    name, split = SPLITS[rng.integers(len(SPLITS))]
    has_stages = "pp" in split
    keys = {"num_layers": 6 if has_stages else 2, "cluster": "h100-sxm-128"}
    if rng.random() < 0.35 and not has_stages:
        parallel = [{"tp": 2}, {"attention_dp": 2}, {"pp": 2}][rng.integers(3)]
        keys["engine"] = str(rng.choice(["vllm", "sglang", "trtllm"]))
        keys["prefill"] = {"parallel": parallel, "layerwise": bool(rng.random() < 0.3)}
    plan = draw_policies(tiny.plan(name, **split, **keys), rng)
    if plan.prefill is None:
        return plan
    return dataclasses.replace(plan, prefill=draw_policies(plan.prefill, rng))


def draw_policies(plan, rng):
    """A plan that serves by any rules."""
    scheduling = draw_scheduling(rng, may_hold=plan.placement.layout.pp == 1)
    return change_plan(
        plan,
        replicas=int(rng.choice([1, 1, 2, 5])),
        balancing=build("balancing", {"kind": str(rng.choice(BALANCERS))}, "test"),
        rules=build("scheduling", scheduling, "test").rules(),
    )


def draw_scheduling(rng, may_hold):
    """Any shipped policy with any of its keys; pipelines hold no prompts back."""
    kind = str(rng.choice(["chunked", "prefill_first", "no_evict"]))
    watermark = float(rng.choice([0.0, 0.01, 0.2]))
    keys = {
        "chunked": {"reserve_full_isl": bool(rng.random() < 0.5), "watermark": watermark},
        "prefill_first": {
            "splits_prompts": bool(rng.random() < 0.5),
            "poll_steps": int(rng.choice([1, 3])),
            "counts_output": bool(rng.random() < 0.6),
            "conservativeness": float(rng.choice([0.3, 1.0])),
            "watermark": watermark,
        },
        "no_evict": {
            "chunked_prompts": bool(rng.random() < 0.5),
            "balance_steps": int(rng.choice([0, 2, 5])) * may_hold,
            "wait_steps": int(rng.choice([0, 3])) * may_hold,
            "wait_share": float(rng.choice([0.0, 0.5])),
        },
    }
    return {
        "kind": kind,
        "token_budget": int(rng.choice([64, 256, 1024])),
        "max_sequences": int(rng.choice([4, 16, 64])),
        **keys[kind],
    }


def draw_trace(tiny, rng):
    trace = tiny.trace(
        int(rng.choice([1, 20, 60])),
        float(rng.choice([50.0, 400.0, 5000.0])),
        int(rng.choice([60, 200, 700])),
        int(rng.choice([1, 20, 200, 200])),
        seed=int(rng.integers(1000)),
        concurrency=None if rng.random() < 0.6 else int(rng.choice([1, 7, 40])),
    )
    if rng.random() < 0.3:  # many at one instant
        trace = dataclasses.replace(trace, arrival_s=np.round(trace.arrival_s, 2))
    return with_prefixes(trace, rng) if rng.random() < 0.4 else trace


def with_prefixes(trace, rng):
    """Prompts of few families, which begin alike for some prefix blocks and go on by themselves."""
    size = int(rng.choice([16, 24, 64]))
    ids, starts = [], [0]
    for number, num_input in enumerate(trace.num_input.tolist()):
        family, shared = int(rng.integers(3)), int(rng.integers(1, 12))
        own = [family * 100 + k if k < shared else 1000 * (number + 1) + k for k in range(60)]
        ids += own[: -(-num_input // size)]
        starts.append(len(ids))
    return dataclasses.replace(
        trace,
        prefix_block_tokens=size,
        prefix_starts=np.array(starts),
        prefix_ids=np.unique(ids, return_inverse=True)[1].astype(np.int64),
    )
