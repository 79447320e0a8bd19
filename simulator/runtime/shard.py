"""Shard of a model on one rank, as a plain class: it runs in a thread, in a Ray actor, or
elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.base import plugins
from simulator.base.machine import count_cores
from simulator.policies.placement import Placed
from simulator.runtime.blocks import RankModel
from simulator.runtime.inputs import Contexts, token_ids
from simulator.runtime.job import TORCH_DTYPES, Job, Step
from simulator.runtime.layers.cached_experts import CacheReads
from simulator.runtime.layers.kinds import Cached, Chunk
from simulator.runtime.layers.weights import weights_from
from simulator.runtime.moving import Received, load_experts, move_experts
from simulator.runtime.timeline import Moment, Timeline
from simulator.runtime.transport import PeerLostError, Transport


@dataclass(frozen=True)
class ShardStep:
    """Results of a step on one rank."""

    rank: int
    moments: list[Moment]
    """Operations of the step with their times."""
    num_tokens: int
    """New tokens of the rank's own sequences."""
    pairs_L: list[int]
    """Token-expert pairs that the rank computed, by MoE layer."""
    rows_LR: list[list[int]]
    """Rows that it sent to each rank, by MoE layer; empty where tokens do not travel."""
    hidden_TH: NDArray[np.float32] | None
    """Hidden vectors of its own sequences' tokens behind the last norm, where the step keeps its
    output."""
    topk_ids_LTK: NDArray[np.int16] | None
    """Experts used by those tokens, -1 where a choice was dropped."""
    load_LE: NDArray[np.int64]
    """Tokens of its own sequences that each expert computed, by MoE layer."""
    reads_L: tuple[CacheReads, ...] = ()
    """Experts in memory and on disk that it used, by MoE layer; empty where it holds all."""


class Shard:
    """Shard of rank ``rank`` of ``size``."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self._transport: Transport | None = None
        self._job: Job | None = None
        self._model: RankModel | None = None
        self._contexts: Contexts | None = None

    def process(self) -> tuple[int, str]:
        """Process of the shard, and the boot that its clock belongs to: processes of one boot share
        a clock.
        """
        boot = Path("/proc/sys/kernel/random/boot_id")
        return os.getpid(), boot.read_text().strip() if boot.exists() else f"{os.uname().nodename}"

    def use_threads(self, number: int) -> None:
        """Set the number of threads of the rank's kernels."""
        torch.set_num_threads(number)

    def clock_s(self) -> float:
        """Read the clock of the shard's moments, seconds."""
        return time.perf_counter()

    def join(self, transport: dict[str, object], address: Any, timeout_s: float) -> None:
        """Meet the other ranks, leaving an earlier meeting."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        policy = plugins.build("runtime.transport", transport, "[execution.transport]")
        self._transport = policy.connect(address, self.rank, self.size, timeout_s)

    def load(self, job: Job) -> int:
        """Build the rank's part of the model; every weight depends on the seed and its own name, or
        comes from the file.

        Returns:
            Parameters on this rank.
        """
        self._remove_files()
        self._job, self._model = job, None
        self._contexts = Contexts(job, self.rank, self.device)
        with torch.no_grad():
            model = RankModel(job, self.rank).to(device=self.device, dtype=TORCH_DTYPES[job.dtype])
            model.load(weights_from(job.weights, job.seed))
        self._model = model
        return sum(parameter.numel() for parameter in model.parameters())

    def step(self, step: Step, timeout_s: float | None = None) -> ShardStep:
        """Run one forward pass with the other ranks.

        Args:
            timeout_s: seconds that each exchange of it may take; by default those of the last step.

        Raises:
            PeerLostError: if another rank is lost, or does not come in time.
        """
        job, model, transport = self._job, self._model, self._transport
        if job is None or model is None or transport is None or self._contexts is None:
            raise RuntimeError(
                f"rank {self.rank} was told to run a step before it had a model and a transport"
            )
        if timeout_s is not None:
            transport.wait_at_most(timeout_s)
        first, end = job.sequences(self.rank, step.num_sequences)
        chunk = Chunk(end - first, step.new_tokens, step.context_tokens)
        ids_T = token_ids(job, step)[first * step.new_tokens : end * step.new_tokens].to(
            self.device
        )
        caches: list[Cached] | None = (
            self._contexts.draw_caches(step, first, end) if step.context_tokens else None
        )
        with self._leave_if_lost(), torch.inference_mode():
            transport.barrier()
            timeline = Timeline()
            result = model.run(
                ids_T, chunk, caches, step, first * step.new_tokens, transport, timeline
            )
        kept: Tensor | None = result.hidden_TH if step.keeps_output else None
        ids_LTK = [ids for ids in result.topk_ids_LTK if ids is not None]
        num_experts = 0 if job.moe is None else job.moe.num_experts
        counts = [np.bincount(ids_TK[ids_TK >= 0], minlength=num_experts) for ids_TK in ids_LTK]
        return ShardStep(
            rank=self.rank,
            moments=timeline.moments,
            num_tokens=chunk.num_tokens,
            pairs_L=result.pairs_L,
            rows_LR=result.rows_LR,
            hidden_TH=None if kept is None else kept.float().cpu().numpy(),
            topk_ids_LTK=np.stack(ids_LTK).astype(np.int16)
            if step.keeps_output and ids_LTK
            else None,
            load_LE=np.array(counts, dtype=np.int64).reshape(len(counts), num_experts),
            reads_L=tuple(experts.latest for experts in model.cached_experts),
        )

    @contextmanager
    def _leave_if_lost(self) -> Iterator[None]:
        """Leave the others when one of them is lost: connections to this rank break, so that those
        that wait for it, and not for the lost one, need not wait in vain.
        """
        try:
            yield
        except PeerLostError:
            self.close()
            raise

    def place_experts(self, placed: Placed) -> Received:
        """Exchange the weights of experts with the other ranks, and go on with another placement.

        Raises:
            PeerLostError: if another rank is lost; this one has its experts where they were.
        """
        job, model = self._job, self._model
        if job is None or model is None:
            raise RuntimeError(f"rank {self.rank} was told to move experts before it had any")
        placed_job = job.place_experts(placed)
        with self._leave_if_lost():
            received = move_experts(model, placed_job, self.transport)
        self._job = placed_job
        return received

    def regroup(self, rank: int, size: int, job: Job) -> int:
        """Become another rank, of a group of another size, and load what it lacks for a job whose
        other weights it has; one without a model loads all.

        Returns:
            Bytes of the experts that were loaded into its model.
        """
        self.rank, self.size = rank, size
        if self._model is None:
            self.load(job)
            return 0
        num_bytes = load_experts(self._model, job, rank)
        self._job, self._contexts = job, Contexts(job, rank, self.device)
        return num_bytes

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function(shard, *arguments)`` in the shard's process."""
        return function(self, *arguments)

    @property
    def transport(self) -> Transport:
        """Rank's end of the transport to the others."""
        if self._transport is None:
            raise RuntimeError(f"rank {self.rank} has not met the others")
        return self._transport

    def _remove_files(self) -> None:
        """Remove what lies on disk of the model."""
        for experts in [] if self._model is None else self._model.cached_experts:
            experts.close()

    def close(self) -> None:
        """Leave the other ranks, for good where a part of the model lies on disk."""
        self._remove_files()
        if self._transport is not None:
            self._transport.close()


def threads_per_rank(ranks_on_machine: int) -> int:
    """Threads of each rank's kernels: an equal part of the cores, at least one."""
    return max(1, count_cores() // ranks_on_machine)
