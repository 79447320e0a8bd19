"""Operations of one step of one batch, layer by layer, each with its price."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.step.expert_prices import ExpertStep
from simulator.step.overlap import ChunkedLayer, interleave
from simulator.step.prices import Prices, sends_s
from simulator.step.program import Batch, Busy, Operation, PricedBatch, PricedPart, Together


def step_operations(prices: Prices, batch: Batch, offset: int) -> list[Operation]:
    """List the operations of a batch whose tokens begin at ``offset`` in the pool of recorded
    choices.
    """
    return list_operations(prices, prices.price_batch(batch, offset))


def list_operations(prices: Prices, priced: PricedBatch) -> list[Operation]:
    """List the operations of one step of one batch on the ranks that it meets in each layer, engine
    overhead last.
    """
    batch, overlapped = priced.batch, prices.halved_layers
    num_layers = len(prices.placement.model.layer_names)
    if not overlapped:
        operations = _layers(prices, priced.parts[0], range(num_layers))
    else:
        # Routed experts are in the overlapped layers only.
        whole = PricedPart(batch, [])
        programs = [_layers(prices, part, overlapped) for part in priced.parts]
        operations = [
            *_layers(prices, whole, range(overlapped.start)),
            *(interleave(*programs) if len(programs) == 2 else programs[0]),
            *_layers(prices, whole, range(overlapped.stop, num_layers)),
        ]
    return operations + _end_of_step(prices, batch)


def pass_operations(prices: Prices, priced: PricedBatch) -> list[Operation]:
    """List the operations of a drafting module's pass over a batch, by the module's prices."""
    entry_R = prices.price_ranks(lambda own: own.projection_s[priced.batch.tokens_d])
    return [Busy("dense", -1, entry_R), *list_operations(prices, priced)]


def _end_of_step(prices: Prices, batch: Batch) -> list[Operation]:
    """List the operations behind the last layer: output head, transfers between pipeline stages,
    and engine overhead.
    """
    layout = prices.placement.layout
    num_sequences = np.array([len(new) for new in batch.new_tokens])
    has_prompts = any(not flags.all() for flags in batch.is_decode)
    most = np.array([num_sequences.max(initial=0)], dtype=np.float64)
    overhead_s = prices.overheads_s(most, np.array([float(has_prompts)]))[0]
    head_R = prices.price_ranks(lambda own: own.head_s[batch.num_logits])
    operations = [Busy("dense", -1, head_R)]
    if layout.pp > 1:
        sent_s = float(sends_s(prices, np.array([batch.tokens_d.max()]))[0])
        operations.append(Busy("collective", -1, np.full(layout.num_ranks, sent_s)))
    return [*operations, Busy("overhead", -1, np.full(layout.num_ranks, overhead_s))]


def _layers(prices: Prices, part: PricedPart, layers: range) -> list[Operation]:
    model, tp = prices.placement.model, prices.placement.layout.tp
    tokens_d, steps = part.batch.tokens_d, iter(part.steps)
    mixers_s = {name: _price_mixer(prices, name, part.batch) for name in prices.mixer_s}
    ffns_s = {name: _price_ffn(prices, name, tokens_d) for name in prices.ffn_s}
    hides = prices.shared_s if prices.hides_shared else {}
    shared_s = {name: _price_shared(prices, name, tokens_d) for name in hides}
    sums = tuple(prices.all_reduce(d, int(n)) for d, n in enumerate(tokens_d)) if tp > 1 else ()
    operations: list[Operation] = []
    for layer in layers:
        mixer, ffn = model.layer_names[layer]
        after_mixer, after_ffn = prices.all_reduces(ffn, mixer)
        if mixer != "none":
            operations.append(Busy("attention", layer, mixers_s[mixer]))
        if after_mixer:
            operations.append(Together("collective", layer, prices.tensor_groups, sums))
        hidden = None
        if prices.hides_shared and model.has_experts(ffn):
            hidden = Busy("dense", layer, shared_s[ffn])
            operations.append(Busy("dense", layer, ffns_s[ffn] - hidden.seconds_R))
        elif ffn != "none":
            operations.append(Busy("dense", layer, ffns_s[ffn]))
        if model.has_experts(ffn):
            operations += expert_operations(prices, next(steps), layer, hidden)
        if after_ffn:
            operations.append(Together("collective", layer, prices.tensor_groups, sums))
    return operations


def _price_mixer(prices: Prices, name: str, batch: Batch) -> NDArray[np.float64]:
    """Seconds of a layer's mixer on each rank, ``[R]``."""
    return prices.price_ranks(
        lambda own: own.mixer_s[name][batch.tokens_d] + own.mixer_context_s(name, batch)
    )


def _price_ffn(prices: Prices, name: str, tokens_d: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds of a layer's feed-forward block on each rank, ``[R]``."""
    return prices.price_ranks(lambda own: own.ffn_s[name][tokens_d])


def _price_shared(prices: Prices, name: str, tokens_d: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds of a layer's shared experts on each rank, ``[R]``."""
    return prices.price_ranks(lambda own: own.shared_s[name][tokens_d])


def expert_operations(
    prices: Prices, step: ExpertStep, layer: int, hidden: Busy | None = None
) -> list[Operation]:
    """List the operations of one layer's routed experts: dispatch, experts, combine.

    Args:
        hidden: computation while tokens travel to their experts.
    """
    everyone = (prices.all_ranks,)
    busy = Busy("experts", layer, step.experts_R)
    if not prices.placement.layout.travels:
        return [busy]
    before = [] if step.pack_R is None else [Busy("experts", layer, step.pack_R)]
    behind = [] if step.unpack_R is None else [Busy("experts", layer, step.unpack_R)]
    num_chunks = prices.placement.exchange_chunks
    if num_chunks > 1 or hidden is not None:
        chunked = ChunkedLayer(layer, prices.all_ranks, step, num_chunks)
        return [*before, *chunked.list_operations(hidden), *behind]
    return [
        *before,
        Together("dispatch", layer, everyone, (step.dispatch,)),
        busy,
        Together("combine", layer, everyone, (step.combine,)),
        *behind,
    ]
