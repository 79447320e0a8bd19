"""Exchanges built from one primitive: give every rank one tensor, get one from each."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SwapTransport(ABC):
    """Transport whose only primitive is a swap."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @abstractmethod
    def swap(self, give_R: list[Tensor]) -> list[Tensor]:
        """Give ``give_R[r]`` to rank ``r``; return what each rank gave to this one."""

    def all_to_all(
        self, send: Tensor, send_rows_R: list[int], receive_rows_R: list[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        received = self.swap(list(send.split(send_rows_R)))
        # Ranks that send nothing may have rows of another length.
        rows = [rows for rows in received if len(rows)] or [send[:0]]
        return torch.cat(rows), [len(rows) for rows in received]

    def all_reduce(self, x: Tensor) -> Tensor:
        # Summed in the order of ranks on each of them, so that all have the same bits.
        return torch.stack(self.swap([x] * self.size)).sum(dim=0)

    def barrier(self) -> None:
        self.swap([torch.empty(0)] * self.size)

    def close(self) -> None:
        return
