"""Job of a training: the part of a training plan that real execution needs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simulator.base.errors import UserError
from simulator.deployment.training.plan import TrainingPlan, check_runs_here
from simulator.policies.dispatch import ExecutableDispatch
from simulator.policies.overflow import may_drop
from simulator.runtime.job import Job, RoutedExperts
from simulator.runtime.layers.transformer import check_executable

_EPSILON = 1e-6
"""Constant in AdamW's denominator. With PyTorch's 1e-8 it moves a weight whose gradient is all but
zero by the sign of its rounding, so that two runs drift apart by 1e-4 in three steps."""


@dataclass(frozen=True)
class TrainingJob:
    """Training on so many ranks, in blocks that hold all experts each."""

    block: Job
    """Job of a block: the ranks among which the experts are shared out."""
    num_ranks: int
    """Ranks of all blocks, each with sequences of its own."""
    global_batch: int
    """Sequences of a step on all ranks."""
    micro_batch: int
    """Sequences that a rank computes at once."""
    sequence_tokens: int
    """Tokens of a sequence."""
    learning_rate: float = 3e-4
    """Learning rate of AdamW."""

    @property
    def block_ranks(self) -> int:
        """Ranks of a block."""
        return self.block.layout.num_ranks

    @property
    def rank_batch(self) -> int:
        """Sequences of each rank."""
        return self.global_batch // self.num_ranks

    @property
    def num_tokens(self) -> int:
        """Tokens of a step."""
        return self.global_batch * self.sequence_tokens

    def draw_sequences(self, number: int) -> Tensor:
        """Draw the token ids of a step, ``[global_batch, sequence_tokens + 1]``: the same on every
        rank.
        """
        generator = torch.Generator().manual_seed(
            zlib.crc32(f"{self.block.seed} training {number}".encode())
        )
        shape = (self.global_batch, self.sequence_tokens + 1)
        return torch.randint(self.block.model.vocab_size, shape, generator=generator)

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Make AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""
        return torch.optim.AdamW(parameters, lr=self.learning_rate, eps=_EPSILON)


def make_training_job(plan: TrainingPlan) -> TrainingJob:
    """Make the job of a training plan.

    Raises:
        UserError: if the plan has something that is only simulated.
    """
    placement, spec = plan.placement, plan.spec
    where = f"deployment '{plan.name}'"
    check_executable(placement.model)
    check_runs_here(spec, where)
    experts = None
    if placement.experts is not None:
        if not isinstance(placement.experts.dispatch, ExecutableDispatch):
            raise UserError(
                f"{where}: dispatch '{spec.dispatch['kind']}' has no method 'rows', which "
                'execution needs; say dispatch = { kind = "per_rank" }'
            )
        if may_drop(placement.experts.overflow):
            raise UserError(
                f"{where}: overflow can be simulated, but not executed in a training; leave it out"
            )
        experts = RoutedExperts(
            placement.experts.topk_ids_LTK,
            placement.experts.placed,
            placement.experts.dispatch,
            replica_choice=placement.experts.replica_choice,
        )
    ranks = placement.layout.num_ranks
    block = Job(
        name=plan.name,
        model=placement.model,
        layout=placement.layout,
        node_R=np.asarray(placement.fabric.node_R[:ranks]),
        dtype="fp32",
        dispatch_dtype="fp32",
        combine_dtype="fp32",
        experts=experts,
        pruning=None,
        seed=placement.seed,
        weights=None,
    )
    return TrainingJob(
        block=block,
        num_ranks=spec.num_gpus,
        global_batch=plan.training.global_batch,
        micro_batch=spec.micro_batch,
        sequence_tokens=plan.training.sequence_tokens,
    )
