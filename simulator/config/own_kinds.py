"""A user's own mixers and feed-forward blocks, asked once for what the simulator asks them, so that
a wrong answer is told as theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from simulator.base.contracts import check_call, is_shipped, method_name
from simulator.config.ffns import FFN
from simulator.config.ffns.moe import MoE
from simulator.config.linear import Linear
from simulator.config.mixers import ContextTerm, KVHeads, Mixer


class _Question(NamedTuple):
    name: str
    ask: Callable[[Any, int], Any]
    """Function that asks a block for its answer at a hidden size."""
    wanted: str
    is_right: Callable[[Any], bool]


def try_kinds(blocks: Iterable[Mixer | FFN], hidden_size: int) -> None:
    """Ask every block that is a user's own.

    Raises:
        UserError: naming the method, and what it must return.
    """
    for block in blocks:
        if not is_shipped(type(block)):
            for question in _MIXER if isinstance(block, Mixer) else _FFN:
                _try(question, block, hidden_size)


def _try(question: _Question, block: Mixer | FFN, hidden_size: int) -> None:
    is_property = isinstance(getattr(type(block), question.name), property)
    name = method_name(block, question.name).removesuffix("()" if is_property else "")
    wrong = f"{question.wanted}, for a hidden size of {hidden_size}"
    check_call(
        name,
        partial(question.ask, block, hidden_size),
        lambda found: "" if question.is_right(found) else wrong,
    )


def _is_whole(found: Any, least: int = 0) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found >= least


def _is_amount(found: Any) -> bool:
    return isinstance(found, int | float) and 0 <= found < math.inf


def _are_linears(found: Any) -> bool:
    return isinstance(found, tuple) and all(
        isinstance(one, Linear)
        and all(_is_whole(size, 1) for size in (one.in_features, one.out_features, one.copies))
        and one.split in ("column", "row", "whole")
        for one in found
    )


def _are_terms(found: Any) -> bool:
    return isinstance(found, tuple) and all(
        isinstance(term, ContextTerm)
        and all(map(_is_amount, term._replace(window=0)))
        and _is_whole(term.num_shards, 1)
        and _is_whole(term.compression, 1)
        and (term.window is None or _is_whole(term.window, 1))
        for term in found
    )


def _are_heads(found: Any) -> bool:
    return found is None or (
        isinstance(found, KVHeads) and all(_is_whole(number, 1) for number in found)
    )


_BOTH = (
    _Question(
        "linears",
        lambda block, hidden_size: block.linears(hidden_size),
        "a tuple of Linear, whose features and copies are whole numbers of at least 1 and whose "
        "split is column, row or whole",
        _are_linears,
    ),
    _Question(
        "num_small_parameters",
        lambda block, hidden_size: block.num_small_parameters(hidden_size),
        "a whole number of at least 0",
        _is_whole,
    ),
)
_MIXER = (
    *_BOTH,
    _Question(
        "split_heads",
        lambda mixer, _: mixer.split_heads,
        "a whole number of at least 1",
        partial(_is_whole, least=1),
    ),
    _Question(
        "kv_heads",
        lambda mixer, _: mixer.kv_heads,
        "KVHeads of whole numbers of at least 1, or None",
        _are_heads,
    ),
    _Question(
        "context_terms",
        lambda mixer, _: mixer.context_terms(),
        "a tuple of ContextTerm, whose numbers are finite and at least 0, and num_shards, "
        "compression and window whole and at least 1",
        _are_terms,
    ),
    _Question(
        "state_elements",
        lambda mixer, _: mixer.state_elements(),
        "a whole number of at least 0",
        _is_whole,
    ),
    _Question(
        "recurrent_flops_per_token",
        lambda mixer, _: mixer.recurrent_flops_per_token(),
        "a finite number of at least 0",
        _is_amount,
    ),
)
_FFN = (
    *_BOTH,
    _Question(
        "inner_width",
        lambda ffn, _: ffn.inner_width,
        "a whole number of at least 0",
        _is_whole,
    ),
    _Question(
        "experts",
        lambda ffn, _: ffn.experts,
        "an MoE, or None",
        lambda found: found is None or isinstance(found, MoE),
    ),
    _Question(
        "is_prunable",
        lambda ffn, _: ffn.is_prunable,
        "true or false",
        lambda found: isinstance(found, bool),
    ),
)
