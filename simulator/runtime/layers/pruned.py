"""Pruned matrices: zeros are not stored, and not multiplied where the device has a kernel that
skips them.

| kind | stored | multiplied |
|---|---|---|
| ``unstructured`` | CSR, 32-bit columns | stored weights only (MKL or cuSPARSE) |
| ``block`` | BSR | stored blocks only |
| ``two_four`` | the two of each four, and their two-bit places in a byte a pair | sparse tensor
cores on CUDA; a CPU has no such kernel, so the matrix is expanded and multiplied whole |
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.base.errors import UserError
from simulator.config.sparsity import Block, Pruning, TwoFour, Unstructured
from simulator.runtime.layers.weights import fill


def choose_kept(matrix: Tensor, pruning: Pruning) -> Tensor:
    """Choose the remaining weights of a whole matrix, ``bool [out, in]``: the largest, exactly
    ``pruning.num_stored`` of them.

    Raises:
        UserError: if the matrix does not consist of whole blocks.
    """
    rows, columns = matrix.shape
    if isinstance(pruning, TwoFour):
        _check_whole(matrix, 1, 4, pruning)
        fours = matrix.abs().unflatten(1, (-1, 4))
        best = fours.topk(2, dim=2).indices
        return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, best, True).flatten(1)
    if isinstance(pruning, Unstructured):
        best = matrix.abs().flatten().topk(pruning.num_stored(rows, columns), sorted=False).indices
        return (
            torch.zeros(rows * columns, dtype=torch.bool)
            .index_fill_(0, best, True)
            .view(rows, columns)
        )
    size = pruning.block_size
    _check_whole(matrix, size, size, pruning)
    norms = matrix.unflatten(0, (-1, size)).unflatten(2, (-1, size)).square().sum(dim=(1, 3))
    best = norms.flatten().topk(pruning.num_blocks(rows, columns), sorted=False).indices
    mask = torch.zeros(norms.numel(), dtype=torch.bool).index_fill_(0, best, True).view(norms.shape)
    return mask.repeat_interleave(size, dim=0).repeat_interleave(size, dim=1)


def _check_whole(matrix: Tensor, rows: int, columns: int, pruning: Pruning) -> None:
    if matrix.shape[0] % rows or matrix.shape[1] % columns:
        raise UserError(
            f"pruning '{pruning.kind}' needs matrices of whole {rows} x {columns} blocks, "
            f"got {list(matrix.shape)}"
        )


class PrunedMatrix(nn.Module):
    """A matrix that is pruned when it is loaded."""

    def __init__(self, pruning: Pruning) -> None:
        super().__init__()
        self.pruning = pruning
        self.num_stored = 0
        self._matrix: Tensor = torch.empty(0)
        self._place: Tensor = torch.empty(0)

    def store(self, matrix: Tensor, mask: Tensor, like: Tensor) -> None:
        """Store the weights of a matrix (or of a rank's part of it) that its mask keeps.

        Args:
            like: tensor whose device and number format are used.
        """
        if (
            not like.is_cuda
            and like.dtype not in (torch.float32, torch.float64)
            and not isinstance(self.pruning, TwoFour)
        ):
            raise UserError(
                f"pruning '{self.pruning.kind}' needs fp32 on a CPU, which has no sparse "
                f"product in {like.dtype}"
            )
        weights = (matrix * mask).to(like)
        self.num_stored = int(mask.sum())
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".*Sparse", UserWarning
            )  # PyTorch calls CSR and BSR a beta in every process
            if isinstance(self.pruning, TwoFour):
                self._store_two_four(weights, mask)
            else:
                self._store_indexed(weights, mask.to(weights.device), self.pruning)

    def _store_indexed(self, weights: Tensor, mask: Tensor, pruning: Unstructured | Block) -> None:
        """Store weights by the mask's indices, so that a remaining weight that happens to be zero
        is stored like any other.

        Indices have 32 bits: half the bytes of 64, and 20 % faster on few tokens.
        """
        if isinstance(pruning, Block):
            size = pruning.block_size
            places = mask.to_sparse_bsr((size, size))
            blocks = weights.unflatten(0, (-1, size)).unflatten(2, (-1, size)).transpose(1, 2)
            values, maker = blocks[mask[::size, ::size]], torch.sparse_bsr_tensor
        else:
            places = mask.to_sparse_csr()
            values, maker = weights[mask], torch.sparse_csr_tensor
        indices = (places.crow_indices().int(), places.col_indices().int())
        self._matrix = maker(*indices, values, weights.shape, check_invariants=False)

    def _store_two_four(self, weights: Tensor, mask: Tensor) -> None:
        if weights.is_cuda:
            self._matrix = torch.sparse.to_sparse_semi_structured(weights)
            return
        place = mask.unflatten(1, (-1, 4)).to(torch.uint8).topk(2, dim=2).indices.sort(dim=2).values
        self._matrix = weights.unflatten(1, (-1, 4)).gather(2, place).flatten(1)
        self._place = (place[..., 0] * 4 + place[..., 1]).to(torch.uint8)

    def forward(self, x_TI: Tensor) -> Tensor:
        """Product ``x @ matrix.T``, ``[T, out]``."""
        if isinstance(self.pruning, TwoFour):
            return functional.linear(x_TI, self._matrix if x_TI.is_cuda else self._expand())
        if len(x_TI) == 0:
            return x_TI.new_zeros(0, self._matrix.shape[0])
        return (self._matrix @ x_TI.T).T

    def _expand(self) -> Tensor:
        rows = len(self._matrix)
        fours = self._matrix.new_zeros(rows, self._place.shape[1], 4)
        place = torch.stack([self._place // 4, self._place % 4], dim=2).long()
        return fours.scatter_(2, place, self._matrix.view(rows, -1 if rows else 0, 2)).flatten(1)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored matrix, indices included."""
        if isinstance(self.pruning, TwoFour):
            # On CUDA the matrix is a wrapper as large as the dense one; it holds packed weights,
            # and places beside or in them.
            packed, meta = (
                getattr(self._matrix, "packed", self._matrix),
                getattr(self._matrix, "meta", None),
            )
            tensors: list[Tensor] = [packed, self._place if meta is None else meta]
        else:
            tensors = [
                self._matrix.values(),
                self._matrix.col_indices(),
                self._matrix.crow_indices(),
            ]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def store_part(
    holder: Tensor | PrunedMatrix, matrix: Tensor, cut: Callable[[Tensor], Tensor], like: Tensor
) -> None:
    """Store a rank's part of a whole matrix in its parameter, or pruned.

    Args:
        cut: cuts the part out of the matrix.
        like: tensor whose device and number format a pruned matrix takes.
    """
    if not isinstance(holder, PrunedMatrix):
        fill(holder, cut(matrix))
        return
    # The whole matrix decides what is left, so that pruning does not depend on how it is split.
    holder.store(cut(matrix), cut(choose_kept(matrix, holder.pruning)), like)


def multiply(holder: Tensor | PrunedMatrix, x: Tensor, bias: Tensor | None) -> Tensor:
    """Product ``x @ matrix.T``, ``[T, out]``, with a bias where there is one."""
    if isinstance(holder, PrunedMatrix):
        result: Tensor = holder(x)
        return result if bias is None else result + bias
    return functional.linear(x, holder, bias)


def check_whole_blocks(bounds: tuple[int, int], pruning: Pruning) -> None:
    """Refuse parts of a pruned block that do not begin and end between blocks, since they would
    store more than their share.
    """
    size = (
        pruning.block_size
        if isinstance(pruning, Block)
        else 4
        if isinstance(pruning, TwoFour)
        else 1
    )
    if any(bound % size for bound in bounds):
        first, end = bounds
        raise UserError(
            f"pruning '{pruning.kind}' cannot be split at features {first} and {end}: "
            f"not multiples of {size}"
        )
