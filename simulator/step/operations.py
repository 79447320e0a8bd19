"""A whole step of one batch as operations of the ranks: layer by layer, each with its price."""

from __future__ import annotations

import numpy as np

from simulator.step.expert_prices import ExpertStep
from simulator.step.prices import Prices
from simulator.step.program import Batch, Busy, Operation, Together
from simulator.step.two_batch import interleave


def step_operations(prices: Prices, batch: Batch, offset: int) -> list[Operation]:
    """The whole step of one batch as operations of the ranks that it meets in each layer, engine
    overhead last.
    """
    layout, tokens_d = prices.placement.layout, batch.tokens_d
    overlapped = prices.halved_layers
    operations = _layers(prices, batch, offset, range(overlapped.start))
    programs = []
    begin = offset
    for part in prices.parts(batch):
        programs.append(_layers(prices, part, begin, overlapped))
        begin += int(part.tokens_d.sum())
    operations += interleave(*programs) if len(programs) == 2 else programs[0]
    operations += _layers(
        prices, batch, offset, range(overlapped.stop, len(prices.placement.model.layer_names))
    )
    operations.append(Busy("dense", -1, np.repeat(prices.head_s[batch.num_logits], layout.tp)))
    if layout.pp > 1:
        operations.append(
            Busy("collective", -1, np.full(layout.num_ranks, prices.sends_s(int(tokens_d.max()))))
        )
    num_sequences = np.array([len(new) for new in batch.new_tokens])
    has_prompts = any(not flags.all() for flags in batch.is_decode)
    overhead_s = prices.overhead_s(int(num_sequences.max(initial=0)), has_prompts)
    operations.append(Busy("overhead", -1, np.full(layout.num_ranks, overhead_s)))
    return operations


def _layers(prices: Prices, batch: Batch, offset: int, layers: range) -> list[Operation]:
    placement, layout = prices.placement, prices.placement.layout
    tokens_d = batch.tokens_d
    operations: list[Operation] = []
    if not layers:
        return operations
    looking_s = {
        name: np.array(
            [
                sum(prices.lookback_s(t, batch, d) for t in prices.lookbacks if t.mixer == name)
                for d in range(layout.attention_dp)
            ]
        )
        for name in placement.model.mixers
    }
    reduce = (
        tuple(prices.all_reduce(d, int(tokens_d[d])) for d in range(layout.attention_dp))
        if layout.tp > 1
        else ()
    )
    # All of a model's MoE layers are among ``layers``, or none.
    is_routed = any(layer in layers for layer in placement.model.moe_layers)
    steps = iter(prices.expert_steps(tokens_d, offset) if is_routed else ())
    for layer in layers:
        mixer, ffn = placement.model.layer_names[layer]
        after_mixer, after_ffn = prices.all_reduces(ffn, mixer)
        if mixer != "none":
            operations.append(
                Busy(
                    "attention",
                    layer,
                    np.repeat(prices.mixer_s[mixer][tokens_d] + looking_s[mixer], layout.tp),
                )
            )
        if after_mixer:
            operations.append(Together("collective", layer, prices.tensor_groups, reduce))
        if ffn != "none":
            operations.append(
                Busy("dense", layer, np.repeat(prices.ffn_s[ffn][tokens_d], layout.tp))
            )
            if placement.model.has_experts(ffn):
                operations += expert_operations(prices, next(steps), layer)
        if after_ffn:
            operations.append(Together("collective", layer, prices.tensor_groups, reduce))
    return operations


def expert_operations(prices: Prices, step: ExpertStep, layer: int) -> list[Operation]:
    """Dispatch, experts, combine of one layer."""
    everyone = (tuple(range(prices.placement.layout.num_ranks)),)
    busy = Busy("experts", layer, step.experts_R)
    if not prices.placement.layout.travels:
        return [busy]
    before = [] if step.pack_R is None else [Busy("experts", layer, step.pack_R)]
    behind = [] if step.unpack_R is None else [Busy("experts", layer, step.unpack_R)]
    return [
        *before,
        Together("dispatch", layer, everyone, (step.dispatch,)),
        busy,
        Together("combine", layer, everyone, (step.combine,)),
        *behind,
    ]
