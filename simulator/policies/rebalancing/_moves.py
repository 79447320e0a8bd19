"""Moves of experts: when they are looked at, how few there are, and how many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from simulator.base.quantities import YEAR_S, Steps, value_range
from simulator.policies.placement import Placed

LayersPerChunk = Annotated[int, value_range(1, 4096, "layers")] | None
"""Number of layers whose experts move at a time; absent = all."""


class _Moves(Protocol):
    @property
    def asynchronous(self) -> bool: ...

    @property
    def layers_per_chunk(self) -> int | None: ...


def check_chunks(policy: _Moves) -> None:
    """Refuse moves in the background of steps that are made between steps, too.

    Raises:
        ValueError: if both are asked for.
    """
    if policy.asynchronous and policy.layers_per_chunk is not None:
        raise ValueError(
            "layers_per_chunk moves experts between steps, and asynchronous beside them; leave one "
            "of them out"
        )


def keep_where_alike(before: Placed, after: Placed) -> Placed:
    """Give each rank the new set of experts that it has most of, layer by layer: ranks are alike,
    so loads are the same, and fewer weights travel. The pairing is optimal (the assignment problem,
    Kuhn 1955).

    A layer whose ranks have different numbers of slots stays as it is.
    """
    rank_LP = after.rank_LP.copy()
    for layer, (expert_P, rank_P) in enumerate(zip(after.expert_LP, after.rank_LP, strict=True)):
        if len(set(np.bincount(rank_P, minlength=after.num_ranks).tolist())) > 1:
            continue
        has_RE = _list_holders(before.expert_LP[layer], before.rank_LP[layer], after.num_ranks)
        wants_RE = _list_holders(expert_P, rank_P, after.num_ranks)
        num_experts = max(has_RE.shape[1], wants_RE.shape[1])
        shared_RR = _pad(wants_RE, num_experts) @ _pad(has_RE, num_experts).T
        new_R, old_R = linear_sum_assignment(shared_RR, maximize=True)
        name_R = np.empty(after.num_ranks, dtype=np.int64)
        name_R[new_R] = old_R
        rank_LP[layer] = name_R[rank_P]
    order_LP = np.argsort(rank_LP, axis=1, kind="stable")
    return Placed(
        np.take_along_axis(after.expert_LP, order_LP, axis=1),
        np.take_along_axis(rank_LP, order_LP, axis=1),
        after.num_ranks,
    )


def _list_holders(
    expert_P: NDArray[np.int64], rank_P: NDArray[np.int64], num_ranks: int
) -> NDArray[np.int64]:
    """Whether each rank has each expert, 0 or 1, ``[R, E]``."""
    has_RE = np.zeros((num_ranks, int(expert_P.max()) + 1), dtype=np.int64)
    has_RE[rank_P, expert_P] = 1
    return has_RE


def _pad(has_RE: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    return np.pad(has_RE, ((0, 0), (0, num_experts - has_RE.shape[1])))


EverySeconds = Annotated[float, value_range(1e-3, YEAR_S, "seconds")]
"""Seconds from one look to the next."""
EverySteps = Steps | None
"""Steps from one look to the next, instead of seconds; absent = seconds count."""


class _Looks(Protocol):
    @property
    def every_steps(self) -> int | None: ...

    @property
    def model_fields_set(self) -> set[str]: ...


def check_interval(policy: _Looks) -> None:
    """Refuse intervals that are given twice, in steps and in seconds.

    Raises:
        ValueError: if both are there.
    """
    seconds = sorted({"every_s", "window_s"} & policy.model_fields_set)
    if policy.every_steps is not None and seconds:
        raise ValueError(
            f"every_steps counts steps, and {seconds[0]} seconds; leave one of them out"
        )


def list_intervals(every: float, window: float) -> Iterator[float]:
    """Yield the end of every interval, and before it the beginning of its window where that is
    shorter.
    """
    for number in count(1):
        if window < every:
            yield number * every - window
        yield number * every


def begins_window(at: float, every: float) -> bool:
    """Whether a look is at the beginning of a window, not at its end."""
    passed = at % every
    return passed > 1e-9 * every and every - passed > 1e-6
