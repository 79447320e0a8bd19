"""Recorded routing, read from whichever file it came in, and its check against a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from simulator.base.arrays import Bools, Floats, Ints
from simulator.base.errors import UserError
from simulator.config.ffns.moe import MoE

LayerChoice = Literal["exact", "nearest"]

_PAIRS_TO_SEE_ALL = 16
"""Recorded pairs per expert and layer above which the highest expert id must have been seen in some
layer."""


@dataclass(frozen=True)
class Tokens:
    """Expert ids of recorded tokens, as a router gave them."""

    ids_LTK: Ints
    """Expert ids; a row with a negative id in any layer is padding."""
    sequence_T: Ints
    """Number of the sequence that each token belongs to; the tokens of a sequence follow each
    other."""
    layers: tuple[int, ...] | None = None
    """Indices of the model's MoE layers that were recorded; ``None`` = all."""
    num_experts: int | None = None
    """Experts of the recorded model, where the file says so."""
    domain_Q: tuple[str, ...] = ()
    """Kind of text of each sequence, by its number; empty where none is known."""
    request_Q: tuple[str, ...] = ()
    """Identifier of each sequence's request, by its number; empty where none is known."""


@dataclass(frozen=True)
class Counts:
    """Counts of each expert's choices; per domain where the file has several."""

    count_DLE: Floats
    layers: tuple[int, ...] | None = None


def without_padding(tokens: Tokens) -> Tokens:
    """Remove layers that recorded nothing (a serving engine's dense layers) and padding tokens."""
    is_recorded_LT: Bools = tokens.ids_LTK.min(axis=2) >= 0
    if is_recorded_LT.all():
        return tokens
    has_any_L = is_recorded_LT.any(axis=1)
    keep_T = is_recorded_LT[has_any_L].all(axis=0)
    return replace(
        tokens, ids_LTK=tokens.ids_LTK[has_any_L][:, keep_T], sequence_T=tokens.sequence_T[keep_T]
    )


def check_tokens(
    tokens: Tokens, moe: MoE, num_layers: int, choice: LayerChoice, where: str
) -> Ints:
    """Check that the recording is of a model of this shape.

    Returns:
        ``row_L``: recorded layer that stands for each layer of the model.

    Raises:
        UserError: if it has other experts, top-k or layers, or its ids make no sense.
    """
    recorded_layers, num_tokens, top_k = tokens.ids_LTK.shape
    if top_k != moe.top_k:
        raise UserError(
            f"{where}: recorded with top-{top_k}, but the model uses top-{moe.top_k} of its experts"
        )
    if num_tokens == 0 or recorded_layers == 0:
        raise UserError(f"{where}: holds no recorded token")
    row_L = layer_rows(recorded_layers, tokens.layers, num_layers, choice, where)
    highest = int(tokens.ids_LTK.max())
    saw_all = num_tokens * top_k >= _PAIRS_TO_SEE_ALL * moe.num_experts
    num_experts = tokens.num_experts or (
        highest + 1 if saw_all or highest >= moe.num_experts else moe.num_experts
    )
    if num_experts != moe.num_experts or highest >= moe.num_experts:
        recorded = max(num_experts, highest + 1)
        raise UserError(
            f"{where}: recorded with {recorded} experts (ids 0-{highest}), but the model "
            f"has {moe.num_experts}"
        )
    sorted_LTK = np.sort(tokens.ids_LTK, axis=2)
    if (sorted_LTK[:, :, 1:] == sorted_LTK[:, :, :-1]).any():
        layer, token = np.argwhere((sorted_LTK[:, :, 1:] == sorted_LTK[:, :, :-1]).any(axis=2))[0]
        raise UserError(
            f"{where}: recorded layer {layer}, token {token} names an expert twice; "
            "a router picks distinct ones"
        )
    return row_L


def check_counts(
    counts: Counts, moe: MoE, num_layers: int, choice: LayerChoice, where: str
) -> Ints:
    """Check a table of counts as :func:`check_tokens` does tokens; it cannot say its top-k but can
    contradict it.

    Raises:
        UserError: if it has other experts or layers, or an expert was chosen more often than top-k
            allows.
    """
    _, recorded_layers, num_experts = counts.count_DLE.shape
    if num_experts != moe.num_experts:
        raise UserError(
            f"{where}: counted {num_experts} experts, but the model has {moe.num_experts}"
        )
    if not np.isfinite(counts.count_DLE).all() or (counts.count_DLE < 0).any():
        raise UserError(f"{where}: counts must be finite and not negative")
    row_L = layer_rows(recorded_layers, counts.layers, num_layers, choice, where)
    total_DL = counts.count_DLE.sum(axis=2)
    if (total_DL == 0).any():
        raise UserError(f"{where}: counted layer {np.argwhere(total_DL == 0)[0][1]} has no counts")
    largest = float((counts.count_DLE.max(axis=2) / total_DL).max())
    if largest * moe.top_k > 1 + 1e-6:
        raise UserError(
            f"{where}: one expert has {largest:.0%} of a layer's selections, "
            f"but with the model's top-{moe.top_k} it can have at most {1 / moe.top_k:.0%}"
        )
    return row_L


def layer_rows(
    num_recorded: int,
    layers: tuple[int, ...] | None,
    num_layers: int,
    choice: LayerChoice,
    where: str,
) -> Ints:
    """Recorded layer that stands for each layer of the model: the same one, or the nearest where
    the user asked for that.

    >>> layer_rows(3, (0, 7, 15), 8, "nearest", "counts.json").tolist()
    [0, 0, 0, 0, 1, 1, 1, 1]
    """
    if num_recorded == num_layers and (layers is None or layers == tuple(range(num_layers))):
        return np.arange(num_layers)
    if num_recorded > num_layers:
        raise UserError(
            f"{where}: recorded {num_recorded} MoE layers, but the model has {num_layers}"
        )
    named = "" if layers is None else f" ({', '.join(map(str, layers))})"
    mismatch = f"{where}: recorded {num_recorded} MoE layers{named}, but the model has {num_layers}"
    if layers is None:
        raise UserError(f"{mismatch}; the file does not say which ones")
    if len(layers) != num_recorded:
        raise UserError(f"{where}: names {len(layers)} layers but holds {num_recorded}")
    if choice == "exact":
        raise UserError(
            f'{mismatch}; set layers = "nearest" to let the nearest recorded layer stand '
            "for each missing one"
        )
    distance_LR = np.abs(np.arange(num_layers)[:, None] - np.array(layers)[None, :])
    row_L: Ints = distance_LR.argmin(axis=1)
    return row_L
