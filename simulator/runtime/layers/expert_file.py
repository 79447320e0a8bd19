"""File of a layer's experts on disk, from which single ones are read."""

from __future__ import annotations

import os
import tempfile
import time

import torch
from torch import Tensor


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
