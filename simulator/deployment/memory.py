"""Does it fit? Weights, activations and KV cache against memory, and what would fit if it does
not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.base.errors import UserError
from simulator.base.quantities import MOST_RANKS
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.deployment import DeploymentSpec
from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.model import ModelSpec
from simulator.work.layout import Layout, uneven_heads
from simulator.work.memory import CacheSize, Precision, cache_size, weight_bytes


@dataclass(frozen=True)
class Capacity:
    """Memory of one GPU, in bytes, and the KV blocks that follow from it."""

    total_bytes: float
    weights_bytes: float
    reserve_bytes: float
    """Activations, and what the memory fraction leaves to the driver and the framework."""
    kv_bytes: float
    """What is left for the KV cache and recurrent state."""
    cache: CacheSize
    block_tokens: int

    @property
    def block_bytes(self) -> float:
        """Bytes of one KV block on one rank; a model without growing caches counts its state in
        single bytes.
        """
        return max(1.0, self.cache.bytes_per_token * self.block_tokens)

    @property
    def num_blocks(self) -> int:
        """KV blocks of one attention data-parallel rank, for the requests of all batches in
        flight.
        """
        return int(self.kv_bytes // self.block_bytes)

    @property
    def sequence_blocks(self) -> int:
        """Blocks that every running sequence takes whatever its length."""
        return -int(-self.cache.bytes_per_sequence // self.block_bytes)

    @property
    def tokens(self) -> int:
        """Tokens that the cache of one data-parallel rank holds, in one long sequence."""
        return max(0, self.num_blocks - self.sequence_blocks) * self.block_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that a sequence of ``num_tokens`` takes."""
        growing = -(-num_tokens // self.block_tokens) if self.cache.bytes_per_token else 0
        return growing + self.sequence_blocks


def check_memory(
    spec: DeploymentSpec,
    model: ModelSpec,
    accelerator: AcceleratorSpec,
    layout: Layout,
    precision: Precision,
    where: str,
) -> Capacity:
    """What each GPU holds.

    Raises:
        UserError: if weights, activations and a KV cache of one sequence of 2,048 tokens do not
            fit: with what is needed, what there is, and the smallest split or narrower format that
            fits.
    """
    capacity = _capacity(spec, model, accelerator, layout, precision)
    if _fits(capacity, model):
        return capacity
    sequence_bytes = capacity.cache.bytes_for(_least_tokens(model))
    needed = capacity.weights_bytes + spec.activation_bytes + sequence_bytes
    share = 1.0 if spec.free_memory_fraction else spec.memory_fraction
    available = capacity.total_bytes * share
    dtypes = " and ".join(dict.fromkeys((precision.weights, precision.experts)))
    raise UserError(
        f"{where}: {model.name} does not fit: each GPU needs {_gb(needed)} "
        f"({_gb(capacity.weights_bytes)} of weights in {dtypes}, "
        f"{_gb(spec.activation_bytes)} for activations, {_gb(sequence_bytes)} for one sequence), "
        f"{accelerator.title} has {_gb(available)} ({share:.0%} of {_gb(capacity.total_bytes)}); "
        + _what_would_fit(spec, model, accelerator, layout, precision)
    )


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


def _fits(capacity: Capacity, model: ModelSpec) -> bool:
    return capacity.kv_bytes >= capacity.cache.bytes_for(_least_tokens(model))


def _capacity(
    spec: DeploymentSpec,
    model: ModelSpec,
    accelerator: AcceleratorSpec,
    layout: Layout,
    precision: Precision,
) -> Capacity:
    total = accelerator.servable_memory_bytes
    num_slots = spec.placement.get("num_slots")
    weights = weight_bytes(
        model, layout, precision, spec.pruning, num_slots if isinstance(num_slots, int) else None
    )
    kv_bytes = total * spec.memory_fraction - weights - spec.activation_bytes
    if spec.free_memory_fraction is not None:
        kv_bytes = (total - weights - spec.activation_bytes) * spec.free_memory_fraction
    return Capacity(
        total_bytes=total,
        weights_bytes=weights,
        reserve_bytes=total - weights - kv_bytes,
        kv_bytes=kv_bytes,
        cache=cache_size(model, layout, precision),
        block_tokens=spec.kv_block_tokens,
    )


def _what_would_fit(
    spec: DeploymentSpec,
    model: ModelSpec,
    accelerator: AcceleratorSpec,
    layout: Layout,
    precision: Precision,
) -> str:
    dtypes = [
        dtype
        for dtype in (precision.weights, "fp8", "mxfp4")
        if BYTES_PER_ELEMENT[dtype] <= BYTES_PER_ELEMENT[precision.weights]
    ]
    answers = []
    for dtype in dict.fromkeys(dtypes):
        tried = (
            precision
            if dtype == precision.weights
            else Precision(dtype, dtype, precision.kv, precision.dispatch, precision.combine)
        )
        found = _smallest_split(spec, model, accelerator, layout, tried)
        if found is not None:
            split, num_gpus = found
            format_ = "" if dtype == precision.weights else f' with weight_dtype = "{dtype}"'
            answers.append(
                (num_gpus, f"{split} ({num_gpus} GPU{'s' if num_gpus > 1 else ''}){format_}")
            )
    if not answers:
        return f"no split over up to {MOST_RANKS:,} of these GPUs fits"
    fewest: list[tuple[int, str]] = []
    for num_gpus, text in answers:
        if not fewest or num_gpus < fewest[-1][0]:
            fewest.append((num_gpus, text))
    return "what would fit: " + ", or ".join(text for _, text in fewest)


def _smallest_split(
    spec: DeploymentSpec,
    model: ModelSpec,
    accelerator: AcceleratorSpec,
    layout: Layout,
    precision: Precision,
) -> tuple[str, int] | None:
    """The smallest multiple of the layout that fits and that the model can be split into."""
    factor = 1
    while layout.num_gpus * factor <= MOST_RANKS:
        for grown, text in _grown(layout, model, factor):
            is_possible = uneven_heads(model, grown.tp) is None and (
                model.moe is None or grown.ep <= model.moe.num_experts
            )
            if is_possible and _fits(_capacity(spec, model, accelerator, grown, precision), model):
                return text + (f", pp = {grown.pp}" if grown.pp > 1 else ""), grown.num_gpus
        factor *= 2
    return None


def _grown(layout: Layout, model: ModelSpec, factor: int) -> Iterator[tuple[Layout, str]]:
    """Layouts of ``factor`` times the ranks, likeliest first: more of what spreads the weights now,
    experts or else heads.
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
