"""A user's own mixers and feed-forward blocks, asked once for what the simulator asks them, so that
a wrong answer is told as theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from simulator.base.contracts import check_call, is_shipped, method_name
from simulator.config.ffns import FFN
from simulator.config.ffns.moe import MoE
from simulator.config.linear import Linear
from simulator.config.mixers import ContextTerm, KVHeads, Mixer


class _Answer(NamedTuple):
    """Right answers to a question."""

    wanted: str
    is_right: Callable[[object], bool]


def try_kinds(blocks: Iterable[Mixer | FFN], hidden_size: int) -> None:
    """Ask every block that is a user's own.

    Raises:
        UserError: naming the method, and what it must return.
    """
    for block in blocks:
        if not is_shipped(type(block)):
            for name, answer in (_MIXER if isinstance(block, Mixer) else _FFN).items():
                _try(block, name, answer, hidden_size)


def _try(block: Mixer | FFN, name: str, answer: _Answer, hidden_size: int) -> None:
    is_property = isinstance(getattr(type(block), name), property)
    given = (hidden_size,) if name in _OF_HIDDEN_SIZE else ()
    check_call(
        method_name(block, name).removesuffix("()" if is_property else ""),
        lambda: getattr(block, name) if is_property else getattr(block, name)(*given),
        lambda found: (
            "" if answer.is_right(found) else f"{answer.wanted}, for a hidden size of {hidden_size}"
        ),
    )


def _is_whole(found: object, least: int = 0) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found >= least


def _is_amount(found: object) -> bool:
    return isinstance(found, int | float) and 0 <= found < math.inf


def _are_linears(found: object) -> bool:
    return isinstance(found, tuple) and all(
        isinstance(one, Linear)
        and all(_is_whole(size, 1) for size in (one.in_features, one.out_features, one.copies))
        and one.split in ("column", "row", "whole")
        for one in found
    )


def _are_terms(found: object) -> bool:
    return isinstance(found, tuple) and all(
        isinstance(term, ContextTerm)
        and all(map(_is_amount, term._replace(window=0)))
        and _is_whole(term.num_shards, 1)
        and _is_whole(term.compression, 1)
        and (term.window is None or _is_whole(term.window, 1))
        for term in found
    )


def _are_heads(found: object) -> bool:
    return found is None or (
        isinstance(found, KVHeads) and all(_is_whole(number, 1) for number in found)
    )


_COUNT = _Answer("a whole number of at least 0", _is_whole)
_OF_HIDDEN_SIZE = {
    "linears": _Answer(
        "a tuple of Linear, whose features and copies are whole numbers of at least 1 and whose "
        "split is column, row or whole",
        _are_linears,
    ),
    "num_small_parameters": _COUNT,
}
"""Methods of both, which take a hidden size."""
_MIXER = {
    **_OF_HIDDEN_SIZE,
    "split_heads": _Answer("a whole number of at least 1", partial(_is_whole, least=1)),
    "kv_heads": _Answer("KVHeads of whole numbers of at least 1, or None", _are_heads),
    "context_terms": _Answer(
        "a tuple of ContextTerm, whose numbers are finite and at least 0, and num_shards, "
        "compression and window whole and at least 1",
        _are_terms,
    ),
    "state_elements": _COUNT,
    "recurrent_flops_per_token": _Answer("a finite number of at least 0", _is_amount),
}
_FFN = {
    **_OF_HIDDEN_SIZE,
    "inner_width": _COUNT,
    "experts": _Answer("an MoE, or None", lambda found: found is None or isinstance(found, MoE)),
    "is_prunable": _Answer("true or false", lambda found: isinstance(found, bool)),
}
