"""Changes that may make a deployment faster on the same GPUs, or on the same GPUs with other links:
each as keys of its scenario.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from simulator.base.text import inline_toml
from simulator.config.engine import Remedy
from simulator.deployment.plan import DeploymentPlan
from simulator.explanation.limits import TWICE, list_resources, speed_up
from simulator.results.explained import Queue, Waterfall

LEAST = 0.02
"""Share of a token's time below which what a change addresses is left alone: no change takes all
of it away, and one of a hundredth is not what helps most."""
LEAST_DOUBLED = 1e-3
"""Share of a token's time below which a resource is not tried that would save it in the same steps:
queues have not been seen to make twenty times as much of it."""
_UNEVEN = ("chance", "skew", "busiest_link")
_EXCHANGES = ("links", "busiest_link", "latency")
_BELOW = ("below",)
_OUTSIDE = ("network", "latency", "below")
"""Resources that experts and caches use as they move, beside what steps do."""
_PROMPTS = "prompts"
"""In the place of pieces: the part of all that is of prompts of other requests."""
_MANY = 32
"""Tokens of a step from which llama.cpp brings experts that it computes below otherwise
(``GGML_OP_OFFLOAD_MIN_BATCH``)."""
_CHUNKS = 4
"""Chunks of an exchange: the last one's computation, which nothing hides, is a quarter."""
_SMALLER = 4
"""Divisor of the tokens of a step: prompts in chunks so small that the decodes beside them take
most of the step (8,192 to 2,048, vLLM's usual values)."""
_KINDS = {"deepep_auto": ("all_gather",)}
"""Dispatch policies that are tried instead of one that takes the better of the others itself."""
_ALL_KINDS = ("deepep_auto", "per_expert", "per_node", "all_gather")
"""Dispatch policies with kernels that are calibrated on most accelerators."""

_TWICE = {
    "memory": "the GPUs' memory twice as fast",
    "arithmetic": "arithmetic twice as fast",
    "kernels": "what else kernels do twice as fast",
    "network": "links twice as fast",
    "latency": "network latency halved",
    "engine": "the engine's own work twice as fast",
    "below": "all below the GPUs' memory twice as fast",
}
"""Words for resources that are twice as fast."""
_SPLIT_WORDS = {"tp": "TP {}", "attention_dp": "attention DP {}", "ep": "EP {}", "pp": "PP {}"}


class Change(NamedTuple):
    """Change of one deployment."""

    text: str
    """Change in words."""
    overrides: tuple[str, ...]
    """Change as ``path=value`` texts, which ``--set`` takes."""
    addressed: tuple[str, ...] = ()
    """Pieces of a token's time that it shortens; empty where it may shorten any."""
    resource: str = ""
    """Resource that is twice as fast (:data:`~simulator.results.explained.RESOURCES`); empty of
    other changes."""
    needs: Remedy | None = None
    """Remedy that the engine must offer for it; ``None`` where any does."""


def list_changes(plan: DeploymentPlan, number: int, queue: Queue) -> list[Change]:
    """List the changes of a deployment that are worth simulating.

    Args:
        number: its place in the scenario.
    """
    keys = _Keys(f"deployments.{number}")
    return [
        *_place_experts(plan, keys),
        *_send_otherwise(plan, keys),
        *_split_otherwise(plan, keys),
        *_offload_otherwise(plan, keys),
        *_speed_up(plan, keys),
        *_schedule_otherwise(plan, keys, queue),
        *_leave_out(plan, keys),
    ]


def find_bound(change: Change, waterfalls: Sequence[Waterfall]) -> float:
    """Largest share of a token's time in its pieces that a change addresses; of a resource, what it
    saves in the same steps, and what passes outside of steps. Queues may make more of it.
    """
    if change.resource:
        if change.resource in _OUTSIDE and len(waterfalls) > 1:
            return 1.0  # caches travel between pools
        outside = change.resource in _OUTSIDE
        return max(
            one.doubled.get(change.resource, 0.0) + outside * one.limits.get("outside", 0.0)
            for one in waterfalls
        )
    if not change.addressed:
        return 1.0
    return max(
        sum(({**one.pieces, _PROMPTS: one.prompts_s}).get(name, 0.0) for name in change.addressed)
        / one.token_s
        for one in waterfalls
    )


def is_worth_trying(change: Change, waterfalls: Sequence[Waterfall]) -> bool:
    """Whether a change addresses enough of a token's time to be simulated."""
    return find_bound(change, waterfalls) >= (LEAST_DOUBLED if change.resource else LEAST)


class _Keys:
    """Keys of one deployment."""

    def __init__(self, path: str) -> None:
        self._path = path

    def replace(self, **values: object) -> tuple[str, ...]:
        """Overrides that give keys other values; ``__`` in a name stands for a dot."""
        return tuple(
            f"{self._path}.{name.replace('__', '.')}={inline_toml(value)}"
            for name, value in values.items()
        )


def _place_experts(plan: DeploymentPlan, keys: _Keys) -> Iterator[Change]:
    """Other places of experts, where several ranks have some."""
    moe, ep = plan.placement.model.moe, plan.placement.layout.ep
    if moe is None or ep == 1:
        return
    present = plan.spec.placement
    slots_before = int(present.get("num_slots") or moe.num_experts)
    num_slots = (-(-slots_before // ep) + 1) * ep
    spare = num_slots - moe.num_experts
    text = f"{num_slots} expert slots by EPLB, {spare} of them spare"
    eplb = keys.replace(placement={"kind": "eplb", "num_slots": num_slots})
    yield Change(text, eplb, _UNEVEN, needs="eplb")
    if present["kind"] not in ("eplb", "greedy"):
        text = "experts placed by load (greedy)"
        greedy = keys.replace(placement={"kind": "greedy"})
        yield Change(text, greedy, _UNEVEN, needs="eplb")
    if slots_before > moe.num_experts and plan.spec.replica_choice["kind"] != "least_loaded":
        text = "tokens to the least loaded copy"
        least = keys.replace(replica_choice={"kind": "least_loaded"})
        yield Change(text, least, _UNEVEN, needs="least_loaded")


def _send_otherwise(plan: DeploymentPlan, keys: _Keys) -> Iterator[Change]:
    """Other ways of tokens to their experts, where they travel."""
    experts = plan.placement.experts
    if experts is None or not plan.placement.layout.travels:
        return
    present = str((plan.spec.dispatch or {}).get("kind"))
    for kind in _KINDS.get(present, _ALL_KINDS):
        if kind != present:
            yield Change(f"dispatch {kind}", keys.replace(dispatch={"kind": kind}), _EXCHANGES)
    if plan.spec.spilling["kind"] == "none" and plan.placement.layout.ep > 1:
        text = "excess tokens spilled to idle ranks"
        spill = keys.replace(spilling={"kind": "least_loaded"})
        yield Change(text, spill, _UNEVEN, needs="spilling")
    if plan.spec.overlap == "none":
        if plan.spec.exchange_chunks == 1:
            halves = keys.replace(overlap="two_batch")
            yield Change("two-batch overlap", halves, _EXCHANGES, needs="two_batch")
        if plan.placement.model.moe and plan.placement.model.moe.num_shared_experts:
            text = "shared experts beside the dispatch"
            beside = keys.replace(overlap="shared_experts")
            yield Change(text, beside, _EXCHANGES, needs="shared_experts")
    if plan.spec.overlap != "two_batch" and plan.spec.exchange_chunks == 1:
        text = f"exchanges in {_CHUNKS} chunks"
        chunks = keys.replace(exchange_chunks=_CHUNKS)
        yield Change(text, chunks, _EXCHANGES, needs="exchange_chunks")


def _offload_otherwise(plan: DeploymentPlan, keys: _Keys) -> Iterator[Change]:
    """Other ways to reach experts below the GPU's memory."""
    spec, offload = plan.spec.offload, plan.placement.offload
    if spec is None or offload is None:
        return
    own: dict[str, object] = {"tier": spec.tier, "slots": spec.slots, "caching": spec.caching}
    own |= {} if spec.uploads is None else {"uploads": spec.uploads}
    own |= {} if spec.prefetching["kind"] == "none" else {"prefetching": spec.prefetching}
    own |= {"bring_from_tokens": spec.bring_from_tokens}

    def change(text: str, **values: object) -> Change:
        kept = {key: value for key, value in (own | values).items() if value is not None}
        return Change(text, keys.replace(offload=kept), _BELOW)

    host = plan.placement.cluster.host
    if spec.uploads == 0:
        yield change("missing experts brought to the GPU", uploads=None, caching={"kind": "lru"})
        if spec.bring_from_tokens is None:
            text = f"missing experts brought from {_MANY} tokens a step on"
            yield change(text, bring_from_tokens=_MANY)
    elif host is not None and host.processor is not None:
        text = "missing experts of small steps computed by the processor, hot ones on the GPU"
        hot = {"uploads": 0, "caching": {"kind": "popularity"}, "prefetching": None}
        yield change(text, **hot, bring_from_tokens=_MANY)
    if spec.uploads != 0:
        for kind in ("lru", "lfu", "popularity"):
            if kind != spec.caching["kind"]:
                yield change(f"experts cached by {kind}", caching={"kind": kind})
        if spec.prefetching["kind"] == "none":
            ahead = {"kind": "next_layer", "experts": 1}
            yield change("one expert a layer fetched ahead", prefetching=ahead)
    more = min(spec.slots + max(1, offload.num_experts // 8), offload.num_experts)
    if more > spec.slots:
        yield change(f"{more} experts of a layer on the GPU", slots=more)


def _split_otherwise(plan: DeploymentPlan, keys: _Keys) -> Iterator[Change]:
    """Other splits of the same GPUs: more or less tensor parallelism in replicas of the same size,
    half the size or twice.
    """
    layout, replicas = plan.placement.layout, plan.serving.replicas
    is_moe = plan.placement.model.moe is not None
    tp, dp = layout.tp, layout.attention_dp
    for more, fewer in ((2.0, 0.5), (0.5, 2.0), (1.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 1.0)):
        other_tp, other_dp = tp * more, dp * fewer
        count = replicas / (more * fewer)
        whole = all(one >= 1 and one == int(one) for one in (other_tp, other_dp, count))
        if not whole or (not is_moe and other_dp > 1):
            continue
        ranks = int(other_tp * other_dp)
        split = {"tp": int(other_tp), "attention_dp": int(other_dp)}
        if plan.spec.parallel.ep is not None:
            split["ep"] = ranks if layout.ep == layout.num_ranks else min(layout.ep, ranks)
        split |= {"pp": layout.pp} if layout.pp > 1 else {}
        words = " x ".join(
            _SPLIT_WORDS[key].format(size) for key, size in split.items() if size > 1
        )
        sized = {} if plan.spec.replicas is None else {"replicas": int(count)}
        noun = "replica" if count == 1 else "replicas"
        text = f"{int(count)} {noun} of {words or 'one GPU'}"
        yield Change(text, keys.replace(parallel=split, **sized))


def _speed_up(plan: DeploymentPlan, keys: _Keys) -> Iterator[Change]:
    """Resources that are twice as fast."""
    for resource in list_resources(plan):
        key, value = speed_up(plan.spec, resource, TWICE)
        name = key.replace(".", "__")
        yield Change(_TWICE[resource], keys.replace(**{name: value}), resource=resource)


def _schedule_otherwise(plan: DeploymentPlan, keys: _Keys, queue: Queue) -> Iterator[Change]:
    """Smaller steps, and more sequences where requests wait for a place."""
    rules = plan.serving.rules
    smaller = rules.token_budget // _SMALLER
    if rules.splits_prompts and smaller >= rules.max_sequences:
        text = f"steps of at most {smaller:,} tokens"
        yield Change(text, keys.replace(scheduling__token_budget=smaller), (_PROMPTS,))
    if queue.limited_by == "max_sequences":
        more = 2 * rules.max_sequences
        text = f"{more:,} sequences at once on a rank"
        yield Change(text, keys.replace(scheduling__max_sequences=more))


def _leave_out(plan: DeploymentPlan, keys: _Keys) -> Iterator[Change]:
    """Less of what the scenario declares."""
    if plan.spec.overlap != "none":
        yield Change("no overlap", keys.replace(overlap="none"))
    if plan.spec.spilling["kind"] != "none":
        yield Change("no spilling", keys.replace(spilling={"kind": "none"}))
    if plan.spec.speculation["kind"] != "none":
        yield Change("no drafts", keys.replace(speculation={"kind": "none"}))
    if plan.spec.degraded:
        yield Change("GPUs and links as fast as usual", keys.replace(degraded=[]))
    if plan.spec.rebalancing["kind"] != "none":
        yield Change("experts that stay", keys.replace(rebalancing={"kind": "none"}))
    if plan.spec.scaling["kind"] != "none":
        yield Change("all replicas at all times", keys.replace(scaling={"kind": "none"}))
