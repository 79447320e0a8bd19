"""Experts of a rank that change places while it has a model: their weights travel between ranks, or
are loaded anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from simulator.runtime.blocks import RankModel
from simulator.runtime.exchange import ExpertMap
from simulator.runtime.job import Job
from simulator.runtime.layers.experts import Experts
from simulator.runtime.layers.weights import weights_from
from simulator.runtime.transport import Transport
from simulator.work.expert_moves import ExpertMoves, list_expert_moves


class Received(NamedTuple):
    """Experts that a rank got from others."""

    num_experts: int
    """Copies of experts, or of parts of them where they are split."""
    num_bytes: int
    """Bytes of their weights."""


def move_experts(model: RankModel, job: Job, transport: Transport) -> Received:
    """Exchange the weights of experts between ranks, all layers in one exchange, and put them into
    the slots of a job's placement.

    Every rank does so at the same time. What a rank lacks comes from the nearest one that has it
    (:func:`~simulator.work.expert_moves.list_expert_moves`); a part of a split expert comes from
    the rank that has the same part.

    Raises:
        PeerLostError: if another rank is lost; no expert of this one has changed its place then.
    """
    layers, moe_tp = model.expert_layers, job.layout.moe_tp
    ep_rank, part = divmod(model.rank, moe_tp)
    assert model.job.experts is not None
    assert job.experts is not None
    moves = list_expert_moves(model.job.experts.placed, job.experts.placed, job.node_R[::moe_tp])
    sent = _select(moves, moves.source_M == ep_rank, moves.destination_M)
    due = _select(moves, moves.destination_M == ep_rank, moves.source_M)
    rows = [
        layers[layer].experts.pack(expert)
        for layer, expert in zip(sent.layer_M.tolist(), sent.expert_M.tolist(), strict=True)
    ]
    num_bytes = layers[0].experts.bytes_per_slot
    send = (
        torch.stack(rows) if rows else model.embedding.new_empty((0, num_bytes), dtype=torch.uint8)
    )
    received_MB, _ = transport.all_to_all(
        send,
        _count_rows(sent.destination_M, part, job),
        _count_rows(due.source_M, part, job),
    )
    transport.barrier()  # nobody changes anything before all have what they lack
    packed: list[dict[int, torch.Tensor]] = [{} for _ in layers]
    for row, (layer, expert) in enumerate(zip(due.layer_M, due.expert_M, strict=True)):
        packed[layer][int(expert)] = received_MB[row]
    for moe_layer, layer in enumerate(layers):
        layer.experts.rearrange(ExpertMap(job, moe_layer).experts_of(model.rank), packed[moe_layer])
    model.use_job(job, model.rank)
    return Received(len(received_MB), len(received_MB) * num_bytes)


def load_experts(model: RankModel, job: Job, rank: int) -> int:
    """Load the experts that a rank lacks in the slots of a job's placement from where its weights
    come from, and go on as that rank of the job. Returns the bytes of their weights.

    Args:
        rank: number among the job's ranks.
    """
    weights, num_bytes = weights_from(job.weights, job.seed), 0
    for moe_layer, layer in enumerate(model.expert_layers):
        own, wanted = layer.experts, ExpertMap(job, moe_layer).experts_of(rank)
        lacking = sorted(set(wanted) - set(own.expert_P))
        loaded = Experts(own.moe, own.hidden_size, lacking, own.part)
        loaded = loaded.to(device=model.embedding.device, dtype=model.embedding.dtype)
        loaded.load(weights, f"layers.{layer.layer}.ffn.experts", model.embedding)
        own.rearrange(wanted, {expert: loaded.pack(expert) for expert in lacking})
        num_bytes += len(lacking) * own.bytes_per_slot
    model.use_job(job, rank)
    return num_bytes


def _select(
    moves: ExpertMoves, is_own_M: NDArray[np.bool_], other_M: NDArray[np.int64]
) -> ExpertMoves:
    """Moves of one rank, in the order of the other ranks."""
    own = np.flatnonzero(is_own_M)
    order = own[np.argsort(other_M[own], kind="stable")]
    return ExpertMoves(*(values_M[order] for values_M in moves))


def _count_rows(rank_M: NDArray[np.int64], part: int, job: Job) -> list[int]:
    """Rows for, or from, each rank: those of an expert-parallel rank are of its rank with the same
    part.
    """
    rows_RP = np.zeros((job.layout.ep, job.layout.moe_tp), dtype=np.int64)
    rows_RP[:, part] = np.bincount(rank_M, minlength=job.layout.ep)
    return rows_RP.ravel().tolist()
