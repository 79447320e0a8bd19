"""Splits, number formats and settings that a serving engine refuses to start with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.deployment import DeploymentSpec
from simulator.config.engine import Blocks, EngineSpec, find_engine
from simulator.config.host import HostSpec
from simulator.config.model import ModelSpec
from simulator.policies.scheduling import Rules
from simulator.policies.speculation import Drafts
from simulator.work.layout import Layout, uneven_heads
from simulator.work.memory import Precision


class Setup(NamedTuple):
    """A replica as its engine is started: model, GPU, split, number formats and batching."""

    spec: DeploymentSpec
    model: ModelSpec
    accelerator: AcceleratorSpec
    layout: Layout
    precision: Precision
    rules: Rules
    host: HostSpec | None = None
    """Machine around the GPU, where its memory is known."""
    drafts: Drafts = Drafts()
    """Drafts, whose module has weights and a cache too."""


def check_splits(setup: Setup, place: str, fits: Callable[[Setup], bool]) -> None:
    """Refuse splits that the engine's release refuses; engines without a file refuse nothing.

    Args:
        fits: whether a deployment fits in memory.

    Raises:
        UserError: with the rule, and what would do.
    """
    engine, why = find_engine(setup.spec.engine), find_refusal(setup)
    if engine is None or why is None:
        return
    does: dict[str, str] = {}
    for key, text, other in _list_others(setup):
        if key not in does and find_refusal(other) is None and fits(other):
            does[key] = text
    named = "".join(f"; {text} does" for text in does.values())
    raise UserError(f"{place} [parallel]: {engine.title} does not start {why}{named}")


def find_refusal(setup: Setup) -> str | None:
    """Find the reason why the engine does not start with a split and formats; ``None`` where it
    does, or where no file describes the engine.
    """
    engine = find_engine(setup.spec.engine)
    if engine is None:
        return None
    reasons = (
        reason
        for rule in (_generations, _caches, _heads, _slots, _blocks)
        for reason in rule(engine, setup)
    )
    return next(reasons, None)


def refined_block(
    engine: str, model: ModelSpec, layout: Layout, precision: Precision
) -> int | None:
    """Find the block that the scales of routed experts are refined to; ``None`` where they are left
    as released.
    """
    found, moe = find_engine(engine), model.moe
    rule = None if found is None else found.splits.weights.get(precision.experts)
    if moe is None or rule is None or rule.refined_to is None or layout.moe_tp == 1:
        return None
    part = moe.intermediate_size // layout.moe_tp
    block = math.gcd(part, rule.experts)
    return block if block < rule.experts else None


def _generations(engine: EngineSpec, setup: Setup) -> Iterator[str]:
    accelerator, precision = setup.accelerator, setup.precision
    rules, generation = engine.splits, accelerator.calibration
    if rules.generations and generation not in rules.generations:
        yield f"on {accelerator.title}; it runs on {', '.join(rules.generations)}"
    for name in dict.fromkeys((precision.weights, precision.experts)):
        known = rules.weights_on.get(name)
        if known is not None and generation not in known:
            yield (
                f"with {name} weights on {accelerator.title}; it has them on "
                f"{', '.join(known)}, and weight_dtype names another format"
            )


def _caches(engine: EngineSpec, setup: Setup) -> Iterator[str]:
    accelerator, precision = setup.accelerator, setup.precision
    limits = engine.splits.cache_on.get(precision.kv, {}).get(accelerator.calibration)
    if limits is None:
        return
    begin = f'with kv_dtype = "{precision.kv}" on {accelerator.title}'
    for name, mixer in setup.model.mixers.items():
        if mixer.is_latent and not limits.latent:
            yield f"{begin} for latent attention ('{name}')"
        sizes, heads = limits.head_sizes, mixer.kv_heads
        if heads is not None and sizes and heads.size not in sizes:
            known = ", ".join(map(str, sizes))
            yield f"{begin} for heads of {heads.size} ('{name}'), only of {known}"


def _heads(engine: EngineSpec, setup: Setup) -> Iterator[str]:
    tp = setup.layout.tp
    for name, mixer in setup.model.mixers.items() if engine.splits.kv_heads_divide else ():
        heads = mixer.kv_heads
        if heads is not None:
            few, many = sorted((heads.number, tp))
            if many % few:
                yield (
                    f"with tp = {tp} and {heads.number} KV heads ('{name}'), of which "
                    "one must be a multiple of the other"
                )


def _slots(engine: EngineSpec, setup: Setup) -> Iterator[str]:
    moe, ep = setup.model.moe, setup.layout.ep
    if moe is None or not engine.splits.experts_divide:
        return
    slots = setup.spec.placement.get("num_slots") or moe.num_experts
    if isinstance(slots, int) and slots % ep:
        yield f"with {slots} slots for experts over ep = {ep}, which does not divide them"


def _blocks(engine: EngineSpec, setup: Setup) -> Iterator[str]:
    """Yield parts of matrices that are no whole blocks of scales."""
    model, layout, precision = setup.model, setup.layout, setup.precision
    rules, moe = engine.splits.weights, model.moe
    weights, experts = rules.get(precision.weights), rules.get(precision.experts)
    if weights is not None:
        for what, width in _matrix_widths(model):
            if width / layout.tp % weights.matrices:
                yield _say_blocks(precision.weights, what, width, layout.tp, weights.matrices)
    if experts is not None and moe is not None and layout.moe_tp > 1:
        width = moe.intermediate_size
        if not _fits(width, layout.moe_tp, experts):
            least = experts.refined_to or experts.experts
            yield _say_blocks(precision.experts, "an expert", width, layout.moe_tp, least)


def _list_others(setup: Setup) -> Iterator[tuple[str, str, Setup]]:
    """Yield deployments near one, the nearest first, each with the key that differs and its text:
    fewer tensor-parallel ranks, experts spread further, slots for copies, a wider cache.
    """
    layout, moe = setup.layout, setup.model.moe
    for tp in range(layout.tp - 1, 0, -1):
        ep = min(layout.ep, tp * layout.attention_dp)
        divide = not (layout.tp % tp or tp * layout.attention_dp % ep)
        if divide and uneven_heads(setup.model, tp) is None:
            text = f"tp = {tp}" if ep == layout.ep else f"tp = {tp} with ep = {ep}"
            yield "tp", text, setup._replace(layout=replace(layout, tp=tp, ep=ep))
    if moe is not None:
        for ep in range(min(layout.num_ranks, moe.num_experts), 1, -1):
            if layout.num_ranks % ep == 0 and ep != layout.ep:
                yield "ep", f"ep = {ep}", setup._replace(layout=replace(layout, ep=ep))
        slots = -(-moe.num_experts // layout.ep) * layout.ep
        placement: Policy = {"kind": "eplb", "num_slots": slots}
        text = f'placement = {{ kind = "eplb", num_slots = {slots} }}'
        own = setup.spec.model_copy(update={"placement": placement})
        yield "placement", text, setup._replace(spec=own)
    if setup.precision.kv != "bf16":
        wide = replace(setup.precision, kv="bf16")
        yield "kv_dtype", 'kv_dtype = "bf16"', setup._replace(precision=wide)


def _fits(width: int, ranks: int, rule: Blocks) -> bool:
    """Whether an expert's part is whole blocks, as released or refined."""
    if width % ranks:
        return False
    least = rule.refined_to or rule.experts
    return math.gcd(width // ranks, rule.experts) >= least


def _say_blocks(dtype: str, what: str, width: int, ranks: int, least: int) -> str:
    part = f"{width / ranks:g}"
    return (
        f"with {dtype} weights of {what} over {ranks} ranks: {part} of {width:,} columns a rank "
        f"are no multiple of {least}"
    )


def _matrix_widths(model: ModelSpec) -> Iterator[tuple[str, int]]:
    """Yield the widths that tensor parallelism splits, of attention, dense blocks and shared
    experts, each once. The inputs of the matrix that ends a block are as wide as the outputs of the
    others, except for keys and values, which are repeated where ranks outnumber their heads.
    """
    seen: set[int] = set()
    for kind in (model.mixers, model.ffns):
        for block in kind.values():
            for linear in block.linears(model.hidden_size):
                width = linear.in_features
                if linear.split == "row" and linear.copies == 1 and width not in seen:
                    seen.add(width)
                    yield f"'{linear.name}'", width
