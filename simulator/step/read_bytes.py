"""Bytes of weights that a rank reads in a step beside its routed experts."""

from __future__ import annotations

from dataclasses import replace

from simulator.config.dtypes import BYTES_PER_ELEMENT
from simulator.config.ffns import FFN
from simulator.config.mixers import Mixer
from simulator.deployment.placement import Placement
from simulator.work.memory import expert_bytes_per_layer, linear_bytes, weight_bytes


def count_read_bytes(placement: Placement) -> float:
    """Bytes of weights other than routed experts and the embedding table that one rank of each
    stage reads for every batch.
    """
    model = placement.model
    left_out = model.num_embedding_parameters / placement.layout.tp * BYTES_PER_ELEMENT["bf16"]
    if model.ties_embeddings:
        left_out = 0.0  # the table is the output matrix too
    num_slots = None if placement.experts is None else placement.experts.placed.expert_LP.shape[1]
    if model.moe is not None:
        layer_bytes = expert_bytes_per_layer(
            model.moe,
            model.hidden_size,
            placement.layout,
            placement.precision,
            num_slots,
            placement.pruning,
        )
        left_out += model.num_moe_layers * layer_bytes
    one_stage = replace(placement.layout, pp=1)
    return (
        weight_bytes(model, one_stage, placement.precision, placement.pruning, num_slots) - left_out
    )


def count_layer_bytes(placement: Placement, layers: range) -> float:
    """Bytes of one rank's matrices other than routed experts in some layers."""
    model, tp, dtype = placement.model, placement.layout.tp, placement.precision.weights
    blocks: dict[str, Mixer | FFN] = {**model.mixers, **model.ffns}
    names = [name for layer in layers for name in model.layer_names[layer] if name != "none"]
    return sum(linear_bytes(blocks[name].linears(model.hidden_size), tp, dtype) for name in names)
