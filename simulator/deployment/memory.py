"""Memory check of a deployment: weights, activations and KV cache against a GPU's memory, and
alternatives that would fit.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from simulator.base.errors import UserError
from simulator.base.quantities import MOST_RANKS
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.deployment import OffloadSpec
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.engine import GIB, MemoryRules, Padding, find_engine
from simulator.config.model import ModelSpec
from simulator.deployment.splits import Setup
from simulator.policies.speculation import Drafts
from simulator.work.layout import Layout, uneven_heads
from simulator.work.memory import (
    CacheSize,
    cache_size,
    expert_bytes,
    expert_workspace_bytes,
    forward_bytes,
    logits_bytes,
    weight_bytes,
)

_Z_90 = 1.2815515655446004
"""90th percentile of the standard normal distribution."""
_NO_WORKSPACE = ("mxfp4", "mxfp4_mxfp8")
"""Formats of experts whose kernels (Triton's ``matmul_ogs``) have no workspace of their own."""
_IN_FLIGHT = 2
"""Experts that a GPU has room for beside its slots while it is brought some: one arrives while
another computes."""
_FEWER_SEQUENCES = (512, 256, 128, 64)
"""Smaller limits on sequences that are suggested where a deployment does not fit."""
_UNKNOWN = MemoryRules(kind="of_total", generations=(), off_gib=(0, 0))
"""Rules for engines that no file describes: nine tenths of the whole memory."""
_UNKNOWN_STEP_BYTES = 2e9
"""Bytes of the largest step of such engines, assumed."""


@dataclass(frozen=True)
class Capacity:
    """Memory of one GPU, in bytes, and its KV blocks."""

    total_bytes: float
    weights_bytes: float
    reserve_bytes: float
    """Activations, and memory that the memory fraction leaves to the driver and the framework."""
    kv_bytes: float
    """Memory left for the KV cache and recurrent state."""
    cache: CacheSize
    """Cache of one sequence on one GPU."""
    block_tokens: int
    """Tokens of a KV block."""
    kind: str = "of_total"
    """Meaning of ``share``, see :class:`~simulator.config.engine.MemoryRules`."""
    share: float = 1.0
    """Share of memory that the engine uses, by ``kind``."""
    step_bytes: float = 0.0
    """Bytes that the engine holds for its largest step, communication and libraries."""
    off_bytes: tuple[float, float] = (0.0, 0.0)
    """10th and 90th percentile of the cache in engines' logs less ``kv_bytes``, bytes."""
    module_bytes: float = 0.0
    """Part of ``weights_bytes`` that a drafting module has."""
    module_token_bytes: float = 0.0
    """Part of the cache's bytes of a token that a drafting module has."""

    @property
    def block_bytes(self) -> float:
        """Bytes of one KV block on one rank. A model without growing caches counts its state in
        single bytes.
        """
        return max(1.0, self.cache.bytes_per_token * self.block_tokens)

    @property
    def num_blocks(self) -> int:
        """KV blocks of one attention data-parallel rank, for the requests of all
        batches in flight.
        """
        return int(self.kv_bytes // self.block_bytes)

    @property
    def sequence_blocks(self) -> int:
        """KV blocks that every running sequence takes whatever its length."""
        return -int(-self.cache.bytes_per_sequence // self.block_bytes)

    @property
    def tokens(self) -> int:
        """Tokens that the cache of one data-parallel rank holds, in one long sequence."""
        return max(0, self.num_blocks - self.sequence_blocks) * self.block_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks of a sequence of ``num_tokens``."""
        growing = -(-num_tokens // self.block_tokens) if self.cache.bytes_per_token else 0
        return growing + self.sequence_blocks


class NoRoomError(UserError):
    """A model that does not fit on its GPUs."""

    larger_share: float | None = None
    """``memory_fraction`` with which it does; ``None`` where that does not help."""


def check_memory(
    setup: Setup, where: str, is_legal: Callable[[Setup], bool] = lambda _: True
) -> Capacity:
    """Divide a GPU's memory, and refuse a deployment that does not fit.

    Args:
        is_legal: whether the engine starts with a split and formats.

    Raises:
        NoRoomError: if weights, activations and a KV cache of one sequence of 2,048 tokens do not
            fit: with what is needed, what there is, and the smallest split or narrower format that
            fits.
    """
    model, accelerator, precision = setup.model, setup.accelerator, setup.precision
    capacity = capacity_of(setup)
    if _does_fit(capacity, model):
        return capacity
    sequence_bytes = capacity.cache.bytes_for(_least_tokens(model))
    needed = capacity.weights_bytes + capacity.step_bytes + sequence_bytes
    room = capacity.kv_bytes / (capacity.share if capacity.kind == "left" else 1.0)
    available = capacity.weights_bytes + capacity.step_bytes + room
    dtypes = " and ".join(dict.fromkeys((precision.weights, precision.experts)))
    larger_share = _find_larger_share(setup)
    error = NoRoomError(
        f"{where}: {model.name} does not fit: each GPU needs {_gb(needed)} "
        f"({_gb(capacity.weights_bytes)} of weights in {dtypes}, "
        f"{_gb(capacity.step_bytes)} for activations, {_gb(sequence_bytes)} for one sequence), "
        f"{accelerator.title} has {_gb(available)} ({_share_text(capacity, available)}); "
        + _suggest_fit(setup, larger_share, is_legal)
    )
    error.larger_share = larger_share
    raise error


def _share_text(capacity: Capacity, available: float) -> str:
    share = f"{capacity.share:.0%}"
    if capacity.kind == "of_total":
        return f"{share} of {_gb(available / capacity.share)}"
    whole = _gb(capacity.total_bytes)
    if capacity.kind == "left":
        return f"of {whole}, with {share} of what weights and activations leave for the cache"
    return f"of {whole}, with {share} of what is free before loading for weights and cache"


def start_probability(capacity: Capacity, longest_tokens: int) -> float:
    """Probability that an engine starts: that its KV cache holds the longest request, from a normal
    distribution of the differences between logs and the rules.
    """
    low, high = capacity.off_bytes
    room = capacity.kv_bytes - capacity.blocks_for(longest_tokens) * capacity.block_bytes
    middle, spread = (low + high) / 2, (high - low) / (2 * _Z_90)
    if spread == 0:
        return float(room >= 0)
    return 0.5 * (1 + math.erf((room + middle) / spread / math.sqrt(2)))


def check_requests(capacity: Capacity, longest_tokens: int, where: str) -> None:
    """Refuse a workload whose longest request could never run.

    Raises:
        UserError: with the request's tokens and the cache's.
    """
    if capacity.blocks_for(longest_tokens) > capacity.num_blocks:
        raise UserError(
            f"{where}: the longest request has {longest_tokens:,} tokens, but the KV cache "
            f'holds {capacity.tokens:,} ({_gb(capacity.kv_bytes)} a GPU); use kv_dtype = "fp8", '
            "more tensor parallelism, fewer weights a GPU, or shorter requests"
        )


def _least_tokens(model: ModelSpec) -> int:
    return min(2048, model.max_context_tokens or 2048)


def does_fit(setup: Setup) -> bool:
    """Whether the KV cache holds one sequence of 2,048 tokens, or of the model's
    longest context.
    """
    return _does_fit(capacity_of(setup), setup.model)


def _does_fit(capacity: Capacity, model: ModelSpec) -> bool:
    return capacity.kv_bytes >= capacity.cache.bytes_for(_least_tokens(model))


def capacity_of(setup: Setup) -> Capacity:
    """Divide the memory of one GPU as the engine does, whether the model fits or not."""
    spec, model, accelerator, layout, precision, rules, _, drafts = setup
    engine, memory = find_engine(spec.engine), memory_rules(spec.engine, accelerator)
    total = accelerator.servable_memory_bytes
    num_slots = spec.offload.slots if spec.offload else spec.placement.get("num_slots")
    padding = memory.padding.get(precision.experts, {}).get(accelerator.calibration, Padding())
    stored = (
        model,
        layout,
        precision,
        spec.pruning,
        num_slots if isinstance(num_slots, int) else None,
        (padding.intermediate, padding.hidden),
    )
    weights = weight_bytes(*stored, drafts)
    module_bytes = weights - weight_bytes(*stored) if drafts.num_layers else 0.0
    if spec.offload is not None and spec.offload.brings_experts:
        weights += _IN_FLIGHT * expert_bytes(model, layout, precision, spec.pruning)
    share = spec.memory_fraction
    if share is None:
        splits = engine is not None and engine.attention_dp.splits_budget
        chunk = rules.token_budget * (layout.attention_dp if splits else 1)
        share = memory.share_on(total, layout.num_gpus, layout.attention_dp, chunk)
    kind = memory.kind
    off = memory.generation_off_gib.get(accelerator.calibration, memory.off_gib)
    held = memory.outside_bytes(layout.num_gpus, accelerator.calibration)
    step = step_bytes(memory, setup)
    seen = total - memory.driver_gib * GIB
    if spec.activation_bytes is not None:  # the user's own account, of the whole memory
        kind, held, step, seen, off = "of_total", 0.0, spec.activation_bytes, total, (0.0, 0.0)
    if spec.free_memory_fraction is not None:
        kind, share = "left", spec.free_memory_fraction
    elif spec.memory_fraction is not None and kind == "left":
        kind = "of_total"
    kv_bytes = {
        "of_total": seen * share - weights - held - step,
        "before_loading": (seen - held) * share - weights,
        "left": (seen - weights - held - step) * share,
    }[kind]
    cache, own = (cache_size(model, layout, precision, one) for one in (drafts, Drafts()))
    return Capacity(
        total_bytes=total,
        weights_bytes=weights,
        reserve_bytes=total - weights - kv_bytes,
        kv_bytes=kv_bytes,
        cache=cache,
        block_tokens=spec.kv_block_tokens or (16 if engine is None else engine.kv_block_tokens),
        kind=kind,
        share=share,
        step_bytes=held if kind == "before_loading" else held + step,
        off_bytes=(off[0] * GIB, off[1] * GIB),
        module_bytes=module_bytes,
        module_token_bytes=cache.bytes_per_token - own.bytes_per_token,
    )


def step_bytes(memory: MemoryRules, setup: Setup) -> float:
    """Bytes that an engine holds for its largest step: the larger of sampling and of the layers
    with the experts' workspace, and captured graphs.
    """
    model, layout, rules = setup.model, setup.layout, setup.rules
    sequences = min(rules.max_sequences, rules.token_budget)
    if not memory.generations:
        return _UNKNOWN_STEP_BYTES
    drawing = memory.sampler_copies * logits_bytes(model, sequences)
    layers = forward_bytes(model, layout, rules.token_budget)
    experts = 0.0
    if memory.has_expert_workspace and setup.precision.experts not in _NO_WORKSPACE:
        experts = expert_workspace_bytes(model, layout, rules.token_budget)
    return max(drawing, layers) + experts + memory.graphs_gib * GIB


def memory_rules(engine: str, accelerator: AcceleratorSpec) -> MemoryRules:
    """Find the memory rules of an engine's release; engines and accelerators that no file describes
    get nine tenths of the whole less 2 GB.
    """
    spec = find_engine(engine)
    found = None if spec is None else spec.memory
    return found if found and accelerator.calibration in found.generations else _UNKNOWN


_LARGER_SHARE = 0.8
"""Share of the memory that is suggested where an engine's own leaves too little."""


def _find_larger_share(setup: Setup) -> float | None:
    """Find a share of the memory with which a deployment fits, where only its engine's reserve for
    activations and graphs is in the way.
    """
    rules = memory_rules(setup.spec.engine, setup.accelerator)
    if setup.spec.memory_fraction is not None or not rules.reserves:
        return None
    more = setup.spec.model_copy(update={"memory_fraction": _LARGER_SHARE})
    return _LARGER_SHARE if does_fit(setup._replace(spec=more)) else None


def _suggest_fit(
    setup: Setup, larger_share: float | None, is_legal: Callable[[Setup], bool]
) -> str:
    precision, rules = setup.precision, setup.rules
    dtypes = [
        dtype
        for dtype in (precision.weights, "fp8", "mxfp4")
        if BYTES_PER_ELEMENT[dtype] <= BYTES_PER_ELEMENT[precision.weights]
    ]
    answers = []
    for sequences in _FEWER_SEQUENCES:
        fewer = setup._replace(rules=rules._replace(max_sequences=sequences))
        if sequences < rules.max_sequences and does_fit(fewer):
            answers.append((setup.layout.num_gpus, f"scheduling.max_sequences = {sequences}"))
            break
    if larger_share is not None:
        text = f"memory_fraction = {larger_share}, which leaves less for activations and graphs"
        answers.append((setup.layout.num_gpus, text))
    for dtype in dict.fromkeys(dtypes):
        is_own = dtype == precision.weights
        formats = precision if is_own else replace(precision, weights=dtype, experts=dtype)
        found = _smallest_split(setup._replace(precision=formats), is_legal)
        if found is not None:
            split, num_gpus = found
            format_ = "" if is_own else f' with weight_dtype = "{dtype}"'
            answers.append(
                (num_gpus, f"{split} ({num_gpus} GPU{'s' if num_gpus > 1 else ''}){format_}")
            )
    slots = _most_slots(setup)
    if slots is not None:
        key = "offload.slots = {}" if setup.spec.offload else "offload = {{ slots = {} }}"
        answers.append((1, f"{key.format(slots)} (1 GPU, the other experts in memory below)"))
    if not answers:
        return f"no multiple of this split over up to {MOST_RANKS:,} of these GPUs fits"
    fewest: list[tuple[int, str]] = []
    for num_gpus, text in answers:
        if not fewest or num_gpus < fewest[-1][0]:
            fewest.append((num_gpus, text))
    return "what would fit: " + ", or ".join(text for _, text in fewest)


def _most_slots(setup: Setup) -> int | None:
    """Find the most experts of a layer that one GPU holds where the others are offloaded; ``None``
    where that does not help, or the cluster has no memory below.
    """
    spec, moe, host = setup.spec, setup.model.moe, setup.host
    tier = next(iter(host.tiers), None) if host is not None else None
    if moe is None or tier is None or setup.layout.num_gpus > 1:
        return None
    offload = spec.offload or OffloadSpec(tier=tier, slots=0)

    def fits(slots: int) -> bool:
        own = offload.model_copy(update={"slots": slots})
        return does_fit(setup._replace(spec=spec.model_copy(update={"offload": own})))

    if not fits(0):
        return None
    return bisect_left(range(moe.num_experts), True, key=lambda slots: not fits(slots + 1))


def _smallest_split(setup: Setup, is_legal: Callable[[Setup], bool]) -> tuple[str, int] | None:
    """Find the smallest multiple of the layout that fits and that the model can be split into."""
    model, layout, factor = setup.model, setup.layout, 1
    while layout.num_gpus * factor <= MOST_RANKS:
        for grown, text in _grow_layout(layout, model, factor):
            tried = setup._replace(layout=grown)
            is_possible = uneven_heads(model, grown.tp) is None and (
                model.moe is None or grown.ep <= model.moe.num_experts
            )
            if is_possible and is_legal(tried) and does_fit(tried):
                return text + (f", pp = {grown.pp}" if grown.pp > 1 else ""), grown.num_gpus
        factor *= 2
    return None


def _grow_layout(layout: Layout, model: ModelSpec, factor: int) -> Iterator[tuple[Layout, str]]:
    """Yield layouts of ``factor`` times the ranks, likeliest first: more of what spreads the
    weights now, experts or else heads.
    """
    spreads = layout.ep > 1
    if spreads and layout.attention_dp == 1:
        grown = Layout(layout.tp * factor, 1, layout.ep * factor, layout.pp)
        yield grown, f"tp = {grown.tp}, ep = {grown.ep}"
    more_experts = (
        [1 << power for power in range(factor.bit_length())] if model.moe is not None else [1]
    )
    for experts in reversed(more_experts) if spreads else more_experts:
        grown = Layout(
            layout.tp * factor // experts,
            layout.attention_dp * experts,
            layout.ep * experts,
            layout.pp,
        )
        named = [f"tp = {grown.tp}"] if experts < factor or not spreads else []
        if experts > 1 or spreads:
            named.append(f"attention_dp = {grown.attention_dp}, ep = {grown.ep}")
        yield grown, ", ".join(named)


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
