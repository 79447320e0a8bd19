"""Interfaces of the PyTorch layers of each kind, and their lookup: a kind's layer is in the file
with the name of its description in ``simulator/config``.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from simulator.base.errors import UserError
from simulator.base.plugins import available, package_of
from simulator.config.ffns import FFN
from simulator.config.mixers import Mixer
from simulator.config.sparsity import Pruning, choose_dense, choose_experts
from simulator.runtime.layers.weights import WHOLE, Part, Weights

Cached = tuple[Tensor, ...]
"""Cache of a mixer for the contexts of some sequences: tensors whose meaning is the mixer's own."""
Draw = Callable[[tuple[int, ...]], Tensor]
"""Function that draws numbers of a shape, in fp32 on the CPU, for one sequence and layer."""


class Admission(NamedTuple):
    """Admission of tokens to the experts of one MoE layer."""

    num_choices: int
    """Experts of a token that are looked at (``J``): the chosen ones, then the next best ones."""
    admit: Callable[[Tensor], Tensor]
    """Function from ``ids_TJ`` to the experts that compute the tokens, ``topk_ids_TK``, -1 where a
    choice is dropped."""


class Chunk(NamedTuple):
    """New tokens of equal sequences: a part of their prompts, or one token each in decode."""

    num_sequences: int
    new_tokens: int
    """New tokens of each sequence."""
    context_tokens: int
    """Tokens of each sequence that are in the cache already."""

    @property
    def num_tokens(self) -> int:
        """New tokens of all sequences."""
        return self.num_sequences * self.new_tokens


class MixerLayer(nn.Module, ABC):
    """One rank's part of a mixer, built as ``layer(spec, hidden_size, part)``."""

    @classmethod
    @abstractmethod
    def check(cls, spec: Any, where: str) -> None:
        """Refuse a mixer that the layer lacks a part of.

        Raises:
            UserError: naming the part.
        """

    @classmethod
    @abstractmethod
    def draw_cache(
        cls, spec: Any, context_tokens: int, part: Part, draws: Sequence[Draw]
    ) -> Cached:
        """Draw a part's cache of contexts of so many tokens.

        Args:
            draws: one for each sequence; a sequence's numbers do not depend on the part.
        """

    @abstractmethod
    def load(self, weights: Weights, name: str) -> None:
        """Fill in the weights whose names begin with ``name.``."""

    @abstractmethod
    def forward(self, x_TH: Tensor, chunk: Chunk, cache: Cached | None = None) -> Tensor:
        """Attend from new tokens to the context and to the new ones before them.

        Args:
            x_TH: sequence after sequence, ``chunk.num_tokens`` in all.
            cache: needed where ``chunk.context_tokens > 0``.

        Returns:
            ``[T, H]``, a partial sum where the mixer is split.
        """


class FFNLayer(nn.Module, ABC):
    """Rank's part of a feed-forward block, built as ``layer(spec, hidden_size, part)``; a kind that
    can be pruned takes the pruning behind them.

    Called with ``x_TH`` it returns ``[T, H]``, a partial sum where it is split; a layer with routed
    experts also takes ``ids_TJ`` and an :class:`Admission`, ``None`` where there is none, and
    returns the ids that were used beside its result.
    """

    @abstractmethod
    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        """Fill in the weights whose names begin with ``name.``.

        Args:
            like: a tensor of the number format and device to use (a pruned matrix has no parameter
                that says so).
        """


def mixer_layer(mixer: Mixer, where: str) -> type[MixerLayer]:
    """Find the layer class of a mixer.

    Raises:
        UserError: if its kind has none, or the layer lacks a part of it.
    """
    layer: type[MixerLayer] = _find("mixers", mixer.kind, MixerLayer, where)
    layer.check(mixer, where)
    return layer


def ffn_layer(ffn: FFN, where: str) -> type[FFNLayer]:
    """Find the layer class of a feed-forward block.

    Raises:
        UserError: if its kind has none.
    """
    layer: type[FFNLayer] = _find("ffns", ffn.kind, FFNLayer, where)
    return layer


def build_ffn(
    ffn: FFN, hidden_size: int, pruning: Pruning | None, where: str, part: Part = WHOLE
) -> FFNLayer:
    """Build a rank's part of a feed-forward block, pruned where its kind can be.

    Raises:
        UserError: if its kind has no layer.
    """
    layer = ffn_layer(ffn, where)
    more: tuple[Pruning | None, ...] = ()
    if ffn.is_prunable:
        more = (choose_dense(pruning),)
    elif ffn.experts is not None and choose_experts(pruning) is not None:
        more = (choose_experts(pruning),)
    return layer(ffn, hidden_size, part, *more)


def _find(family: str, kind: str, base: type[nn.Module], where: str) -> Any:
    """Find the one public class derived from ``base`` in the file of ``kind``."""
    package = f"runtime.layers.{family}"
    known = available(package)
    if kind not in known:
        raise UserError(
            f"{where}: {family} of kind '{kind}' can be simulated, but not executed; "
            f"execution has {', '.join(known)} only"
        )
    module = importlib.import_module(f"{package_of(package).__name__}.{kind}")
    (found,) = (
        member
        for name, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, base)
        and member.__module__ == module.__name__
        and not name.startswith("_")
    )
    return found
