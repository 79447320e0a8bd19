"""Experts of a layer in a file, of which a cache holds a few."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from simulator.config.ffns.moe import MoE
from simulator.deployment.offload_plan import OffloadPlan
from simulator.runtime.layers.experts import Experts
from simulator.runtime.layers.weights import Weights
from simulator.work.expert_cache import ExpertCache


class ExpertFile:
    """Weights of ``num_experts`` experts, as bytes behind each other in a file without a name,
    which is gone when the process ends.

    What was read is dropped from the system's own cache of the file, which otherwise would keep all
    experts in memory, so that a read is one of the disk.
    """

    def __init__(self, num_experts: int, expert_bytes: int) -> None:
        self.expert_bytes = expert_bytes
        self.read_s = 0.0
        """Seconds of all reads."""
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the shard
        self._file.truncate(num_experts * expert_bytes)

    def write(self, expert: int, weights_B: Tensor) -> None:
        """Write the weights of an expert, ``[B]`` bytes."""
        os.pwrite(self._file.fileno(), weights_B.numpy().tobytes(), expert * self.expert_bytes)

    def flush(self) -> None:
        """Wait until everything is on the disk, and drop it from memory."""
        os.fsync(self._file.fileno())
        self._drop(0, 0)

    def read(self, expert: int) -> Tensor:
        """Read the weights of an expert, ``[B]`` bytes."""
        begin_s = time.perf_counter()
        read_B = bytearray(self.expert_bytes)
        view, first = memoryview(read_B), expert * self.expert_bytes
        done = 0
        while done < self.expert_bytes:
            done += os.preadv(self._file.fileno(), [view[done:]], first + done)
        self._drop(first, self.expert_bytes)
        self.read_s += time.perf_counter() - begin_s
        return torch.frombuffer(read_B, dtype=torch.uint8)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def _drop(self, first: int, length: int) -> None:
        """Drop a part from the system's cache of the file, all of it where ``length`` is 0."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), first, length, os.POSIX_FADV_DONTNEED)


class CacheReads(NamedTuple):
    """Experts that one step used in one layer."""

    used: int
    """Distinct experts that its tokens chose."""
    held: int
    """Experts of these that were in memory."""
    read_bytes: int
    """Bytes that were read from the disk."""
    read_s: float
    """Seconds of these reads, during which experts in memory were computed."""


class CachedExperts(nn.Module):
    """All experts of one layer in a file, and in memory those that the plan's caching policy keeps.

    A thread of its own reads the missing ones, one while another computes, so that no more than two
    are in memory beside the cache.
    """

    def __init__(
        self,
        moe: MoE,
        hidden_size: int,
        expert_P: list[int],
        offload: OffloadPlan,
        layer: int,
        dtype: torch.dtype,
    ) -> None:
        """Make a layer without weights.

        Args:
            expert_P: expert of each slot of the rank, which has one for each expert.
            layer: index among the MoE layers.
        """
        super().__init__()
        self.expert_P = list(expert_P)
        self._moe, self._hidden, self._dtype = moe, hidden_size, dtype
        earlier_LTK = offload.earlier_LTK[layer : layer + 1]
        self._cache = ExpertCache(offload.rules, earlier_LTK, moe.num_experts)
        self._held: dict[int, Experts] = {}
        self._reader = ThreadPoolExecutor(1)
        self._file: ExpertFile | None = None
        self.latest = CacheReads(0, 0, 0, 0.0)
        """Experts of the step that was run last."""

    @property
    def held(self) -> set[int]:
        """Experts in memory between two steps."""
        return set(self._held)

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        """Write the weights called ``name.<expert id>.up`` and so on to the file, one expert after
        the other, and read those that the cache begins with.

        Args:
            like: a tensor of the number format and device to use.
        """
        for expert in self.expert_P:
            one = self._make(expert)
            one.load(weights, name, like)
            if self._file is None:
                self._file = ExpertFile(len(self.expert_P), one.bytes_per_slot)
            self._file.write(expert, one.pack(expert))
        if self._file is not None:
            self._file.flush()
        for expert in np.flatnonzero(self._cache.held_LE[0]).tolist():
            self._held[expert] = self._read(expert)

    def _make(self, expert: int) -> Experts:
        return Experts(self._moe, self._hidden, [expert]).to(self._dtype)

    def _read(self, expert: int) -> Experts:
        one = self._make(-1)
        one.rearrange([expert], {expert: self._find_file().read(expert)})
        return one

    def _find_file(self) -> ExpertFile:
        assert self._file is not None, "weights are loaded before a step"
        return self._file

    def forward(self, x_NH: Tensor, rows_P: list[int]) -> Tensor:
        """Pass each slot's tokens through its expert, as :class:`Experts` does."""
        file, parts = self._find_file(), dict(zip(self.expert_P, x_NH.split(rows_P), strict=True))
        used = [expert for expert, part in parts.items() if len(part)]
        ids_X = np.repeat(np.array(used, dtype=np.int64), [len(parts[expert]) for expert in used])
        step, before_s = self._cache.take_step(ids_X[None]), file.read_s
        missing = [expert for expert in used if not step.held_LE[0, expert]]
        results = self._compute(parts, used, missing)
        self.latest = CacheReads(
            used=len(used),
            held=len(used) - len(missing),
            read_bytes=len(missing) * file.expert_bytes,
            read_s=file.read_s - before_s,
        )
        return torch.cat([results[expert] for expert in used]) if used else torch.zeros_like(x_NH)

    def _compute(
        self, parts: dict[int, Tensor], used: Sequence[int], missing: Sequence[int]
    ) -> dict[int, Tensor]:
        """Compute the experts in memory while the first missing one is read, then each of these
        while the next is read; those that are worth a slot stay.
        """
        reads = iter(missing)
        read = self._begin_read(reads)
        results = {
            expert: self._held[expert](parts[expert], [len(parts[expert])])
            for expert in used
            if expert in self._held
        }
        kept_E = self._cache.held_LE[0]
        self._held = {expert: one for expert, one in self._held.items() if kept_E[expert]}
        for expert in missing:
            assert read is not None, "there is a read for each"
            one = read.result()
            read = self._begin_read(reads)
            results[expert] = one(parts[expert], [len(parts[expert])])
            if kept_E[expert]:
                self._held[expert] = one
        return results

    def _begin_read(self, experts: Iterator[int]) -> Future[Experts] | None:
        expert = next(experts, None)
        return None if expert is None else self._reader.submit(self._read, expert)

    def close(self) -> None:
        """Remove the file."""
        self._reader.shutdown()
        if self._file is not None:
            self._file.close()
