"""Training steps of one rank: passes of its micro-batches, sums of gradients, and the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from simulator.runtime.blocks import ExpertLayer, RankModel
from simulator.runtime.layers.experts import Experts
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.transformer import Norm
from simulator.runtime.layers.weights import SeededWeights
from simulator.runtime.shard import Shard
from simulator.runtime.timeline import Moment, Timeline
from simulator.runtime.training.exchange import Wires, compute_experts
from simulator.runtime.training.job import TrainingJob
from simulator.runtime.transport import Transport


@dataclass(frozen=True)
class RankStep:
    """Results of a training step on one rank."""

    moments: list[Moment]
    """Operations of the step with their times."""
    loss: float
    """Sum of the cross-entropies of the rank's own tokens, nats."""
    gradients: dict[str, NDArray[np.float32]]
    """Gradients that the optimizer used, by the weight's name; empty unless they were asked for."""


class RankTraining:
    """One rank in training."""

    def __init__(self, job: TrainingJob, rank: int, transport: Transport) -> None:
        self.job, self.rank, self.transport = job, rank, transport
        number = rank % job.block_ranks
        with torch.no_grad():
            self.model = RankModel(job.block, number)
            self.model.load(SeededWeights(job.block.seed))
        self._passes = Passes(self.model, rank - number, job.num_ranks)
        self._experts = [
            parameter
            for layer in self.model.expert_layers
            for parameter in layer.experts.parameters()
        ]
        own = {id(parameter) for parameter in self._experts}
        self._dense = [one for one in self.model.parameters() if id(one) not in own]
        self.optimizer = job.make_optimizer(list(self.model.parameters()))
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def step(self, number: int, *, keeps_gradients: bool) -> RankStep:
        """Train one step with the other ranks."""
        job, ids = self.job, self.job.draw_sequences(number)
        self.transport.barrier()
        timeline = Timeline()
        loss = 0.0
        first = self.rank * job.rank_batch
        for at in range(first, first + job.rank_batch, job.micro_batch):
            batch = MicroBatch(
                ids[at : at + job.micro_batch],
                at * job.sequence_tokens,
                number * job.num_tokens,
            )
            with torch.enable_grad():
                lost = self._passes.sum_losses(batch, self.transport, timeline)
                (lost / job.num_tokens).backward()
            note(timeline, "dense", -1)
            loss += float(lost.detach())
        self._sum_gradients(timeline)
        kept = dict(self._list_gradients()) if keeps_gradients else {}
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        note(timeline, "optimizer", -1)
        return RankStep(timeline.moments, loss, kept)

    def _sum_gradients(self, timeline: Timeline) -> None:
        """Sum gradients over the ranks that hold the same weights: dense ones over all, those of
        experts over the same rank of every block.
        """
        if self.job.num_ranks == 1:
            return
        with timeline.meet("gradients", -1):
            _unflatten(self._dense, self.transport.all_reduce(_flatten(self._dense)))
            blocks = self.job.num_ranks // self.job.block_ranks
            if self._experts and blocks > 1:
                _unflatten(self._experts, self._sum_over_blocks(_flatten(self._experts)))

    def _sum_over_blocks(self, own_G: Tensor) -> Tensor:
        """Sum over the same rank of every block, in the order of blocks on each of them."""
        size, ranks = self.job.block_ranks, self.job.num_ranks
        rows_R = [int(other % size == self.rank % size) for other in range(ranks)]
        sent = own_G.expand(sum(rows_R), -1)
        received, _ = self.transport.all_to_all(sent, rows_R, rows_R)
        return received.sum(dim=0)

    def _list_gradients(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for name, gradient in name_gradients(self.model):
            yield name, gradient.clone().numpy()


def name_gradients(model: RankModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradient of every weight of a rank under the weight's name in
    :class:`~simulator.runtime.layers.weights.Weights`; each expert on its own.
    """
    owners = dict(model.named_modules())
    for path, parameter in model.named_parameters():
        owner_path, _, leaf = path.rpartition(".")
        owner, gradient = owners[owner_path], parameter.grad
        assert gradient is not None, "a step begins with gradients of zero"
        name = _name_module(owner_path)
        if isinstance(owner, Experts):
            for expert, own in zip(owner.expert_P, gradient, strict=True):
                yield f"{name}.{expert}.{leaf}", own
        elif isinstance(owner, Norm):
            yield name, gradient
        else:
            yield f"{name}.{leaf}" if name else leaf, gradient


def _name_module(path: str) -> str:
    """Name of a rank's module in the whole model.

    >>> _name_module("mixer_norms.3"), _name_module("ffns.0.shared.block"), _name_module("norm")
    ('layers.3.mixer_norm', 'layers.0.ffn.shared', 'norm')
    """
    kind, *rest = path.removesuffix(".block").split(".")
    return ".".join(["layers", rest[0], kind.removesuffix("s"), *rest[1:]]) if rest else kind


def _flatten(parameters: list[nn.Parameter]) -> Tensor:
    """Gradients one after the other, ``[G]``."""
    return torch.cat([one.grad.flatten() for one in parameters if one.grad is not None])


def _unflatten(parameters: list[nn.Parameter], flat_G: Tensor) -> None:
    """Take gradients from where :func:`_flatten` put them."""
    first = 0
    for one in parameters:
        one.grad = flat_G[first : first + one.numel()].view(one.shape)
        first += one.numel()


_TRAININGS: WeakKeyDictionary[Shard, RankTraining] = WeakKeyDictionary()
"""Training of each shard of this process."""


def begin_training(shard: Shard, job: TrainingJob) -> int:
    """Let a shard begin a training; to be called on every rank.

    Returns:
        Parameters on this rank.
    """
    _TRAININGS[shard] = RankTraining(job, shard.rank, shard.transport)
    return sum(one.numel() for one in _TRAININGS[shard].model.parameters())


def train_step(shard: Shard, number: int, keeps_gradients: bool) -> RankStep:
    """Train one step on a shard, together with the other ranks."""
    return _TRAININGS[shard].step(number, keeps_gradients=keeps_gradients)


# Forward pass of one micro-batch on one rank, through which gradients come back; both ways are
# noted in the same operations, the backward ones in reverse.


class _Mark(torch.autograd.Function):
    """Vectors as they are; when their gradient comes back, the operation behind them is over."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, timeline: Timeline, phase: str, layer: int) -> Tensor:
        ctx.timeline, ctx.phase, ctx.layer = timeline, phase, layer
        return x_TH.view_as(x_TH)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        note(ctx.timeline, ctx.phase, ctx.layer)
        return gradients[0], None, None, None


def note(timeline: Timeline, phase: str, layer: int) -> None:
    """Note that a computation ends now."""
    with timeline.busy(phase, layer):
        pass


class MicroBatch:
    """Micro-batch of one rank: its tokens, and where they lie in the whole batch."""

    def __init__(self, ids_QS: Tensor, first_token: int, offset: int) -> None:
        """Cut inputs and targets.

        Args:
            ids_QS: tokens of each sequence and the one behind them.
            first_token: index of the first token in the whole batch.
            offset: index of the whole batch's first token in the pool of expert choices.
        """
        self.inputs_T, self.targets_T = ids_QS[:, :-1].flatten(), ids_QS[:, 1:].flatten()
        self.chunk = Chunk(len(ids_QS), ids_QS.shape[1] - 1, 0)
        self.first_token, self.offset = first_token, offset


class Passes:
    """Forward passes of one rank's part of a model."""

    def __init__(self, model: RankModel, first_rank: int, num_ranks: int) -> None:
        """Prepare passes.

        Args:
            first_rank: of the block that shares the experts.
            num_ranks: of all blocks.
        """
        self.model, self._first_rank, self._num_ranks = model, first_rank, num_ranks

    def sum_losses(self, batch: MicroBatch, transport: Transport, timeline: Timeline) -> Tensor:
        """Sum the cross-entropies of a micro-batch's tokens."""
        model = self.model
        x_TH = model.embedding[batch.inputs_T]
        note(timeline, "dense", -1)
        for layer in range(model.job.model.num_layers):
            key = str(layer)
            if key in model.mixers:
                seen = _Mark.apply(x_TH, timeline, "attention", layer)
                mixed = model.mixers[key](model.mixer_norms[key](seen), batch.chunk)
                x_TH = x_TH + mixed
                note(timeline, "attention", layer)
            if key not in model.ffns:
                continue
            seen = _Mark.apply(x_TH, timeline, "dense", layer)
            normed, block = model.ffn_norms[key](seen), model.ffns[key]
            if isinstance(block, ExpertLayer):
                wires = Wires(transport, timeline, layer, self._first_rank, self._num_ranks)
                x_TH = x_TH + _compute_mixture(block, normed, batch, wires)
            else:
                x_TH = x_TH + block(normed)
                note(timeline, "dense", layer)
        last = model.norm(_Mark.apply(x_TH, timeline, "dense", -1))
        head = model.embedding if model.head is None else model.head
        loss = functional.cross_entropy(
            functional.linear(last, head), batch.targets_T, reduction="sum"
        )
        note(timeline, "dense", -1)
        return loss


def _compute_mixture(
    layer: ExpertLayer, normed_TH: Tensor, batch: MicroBatch, wires: Wires
) -> Tensor:
    """Output of an MoE layer for every token, ``[T, H]``."""
    job, num_tokens = layer.job, len(normed_TH)
    planned_TJ = job.ids_TJ(layer.moe_layer, batch.offset + batch.first_token, num_tokens)
    ids_TK, weight_TK = layer.router(
        normed_TH, None if planned_TJ is None else torch.from_numpy(planned_TJ)
    )
    shared_TH = None if layer.shared is None else layer.shared(normed_TH)
    note(wires.timeline, "dense", layer.layer)
    routed_TH = compute_experts(
        layer,
        _Mark.apply(normed_TH, wires.timeline, "experts", layer.layer),
        weight_TK,
        ids_TK.numpy(),
        batch.first_token,
        wires,
    )
    note(wires.timeline, "experts", layer.layer)
    return routed_TH if shared_TH is None else routed_TH + shared_TH
