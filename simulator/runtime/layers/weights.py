"""Sources of weights: drawn from a seed, or read from a safetensors file; and a tensor-parallel
rank's part of them.

Names are the same for both: ``embedding``, ``layers.<i>.mixer.qkv``,
``layers.<i>.ffn.experts.<e>.up``, ``head`` and so on. A matrix is ``[out_features, in_features]``,
as in :func:`torch.nn.functional.linear`; a gate is stacked on its up projection.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from simulator.base.errors import UserError
from simulator.base.home import fetch


class Weights(Protocol):
    """Source of weights."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read the weight called ``name``, in fp32 on the CPU.

        Raises:
            UserError: if the source has none of that name and shape.
        """
        ...


class SeededWeights:
    """Weights drawn from a seed: a weight depends on the seed and its name alone, so an expert is
    the same on any rank.

    Matrices are normal with variance ``1 / in_features``, which keeps activations near one; norms
    are one, biases zero.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape) if name.endswith("norm") else torch.zeros(shape)
        # PyTorch's generator looks at the low 32 bits of its seed only, so both must be in them.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        matrix: Tensor = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        return matrix


class SafetensorsWeights:
    """Weights from a file that :func:`save_weights` wrote, or any with the same names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                found: Tensor = file.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path}: weight '{name}' cannot be read: {error}") from None
        if found.shape != shape:
            raise UserError(
                f"{self.path}: weight '{name}' must be {list(shape)}, is {list(found.shape)}"
            )
        return found


def weights_from(path: str | None, seed: int) -> Weights:
    """Open the file's weights, or the seed's where no file is given."""
    return SeededWeights(seed) if path is None else SafetensorsWeights(fetch(Path(path)))


def empty(*shape: int) -> nn.Parameter:
    """Make a parameter whose weight is loaded later."""
    return nn.Parameter(torch.empty(shape))


def fill(parameter: Tensor, values: Tensor) -> None:
    """Load a weight in place, in the parameter's own number format and on its device."""
    with torch.no_grad():
        parameter.copy_(values)


def save_weights(named: Iterator[tuple[str, Tensor]], path: Path) -> None:
    """Write weights that :class:`SafetensorsWeights` reads."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in named}, path)


@dataclass(frozen=True)
class Part:
    """Part ``rank`` of ``size``; the whole block by default. Features that do not divide evenly go
    to the first parts.
    """

    rank: int = 0
    size: int = 1

    def bounds(self, num_features: int) -> tuple[int, int]:
        """First feature of this part, and the first one behind it.

        >>> [Part(rank, 3).bounds(8) for rank in range(3)]
        [(0, 3), (3, 6), (6, 8)]
        """
        share, extra = divmod(num_features, self.size)
        first = self.rank * share + min(self.rank, extra)
        return first, first + share + (self.rank < extra)

    def num(self, num_features: int) -> int:
        """Number of features of this part."""
        first, end = self.bounds(num_features)
        return end - first

    def cut(self, matrix: Tensor, dim: int = 0) -> Tensor:
        """Cut the part's share of a matrix along ``dim``."""
        first, end = self.bounds(matrix.shape[dim])
        return matrix.narrow(dim, first, end - first)

    def cut_gated(self, matrix: Tensor, is_gated: bool) -> Tensor:
        """Cut the part's share of the rows of a gate stacked on an up projection, ``[2F, H]``: the
        same features of both.
        """
        if not is_gated:
            return self.cut(matrix)
        gate, up = matrix.chunk(2)
        return torch.cat([self.cut(gate), self.cut(up)])


WHOLE = Part()
"""Part that is the whole block."""
