"""Order in which requests wait for a replica's ranks, one policy in a file.

A policy gives each request a key, and the least is first; the engine's compiled loop compares keys.
An order that changes while requests wait is asked for keys again before each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from simulator.base.arrays import Floats, Ints


class Queued(NamedTuple):
    """Requests that are to wait, an entry for each."""

    arrival_s: Floats
    """Arrival, seconds of the run; 0 in a closed loop, where it is not known beforehand."""
    num_input: Ints
    """Prompt tokens."""
    num_output: Ints
    """Output tokens, which no engine knows beforehand."""
    attributes: Mapping[str, NDArray[np.generic]]
    """Further columns of the trace by name, such as ``priority``: numbers, or texts."""


class Keys(NamedTuple):
    """Key of a request: ``offset_N + per_second * t`` when it is sent to a replica at ``t`` seconds
    of the run. It keeps the key when it is preempted, and gets another one when its replica fails
    and it is sent to another one. The request with the least key is first, of equal ones
    the first of the trace.

    Where an engine preempts the request that it admitted last, it then preempts the one with the
    greatest key.
    """

    offset_N: Floats
    """Finite numbers in any unit, ``[N]``."""
    per_second: float = 1.0
    """Weight of the time at which it is sent."""


class Waiting(NamedTuple):
    """Requests that wait at a rank which is about to form a step, an entry for each."""

    now_s: float
    """The present, seconds of the run."""
    key: Floats
    """Keys that they have."""
    number: Ints
    """Numbers in the trace, from 0: entries of what ``keys`` was given."""
    num_input: Ints
    num_generated: Ints
    """Output tokens that they have: of those that were preempted."""
    cached_tokens: Ints
    """Tokens of the longest prefix of each that the rank has cached, in any tier."""


class OrderPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def keys(self, requests: Queued) -> Keys | None:
        """Give requests their keys; ``None`` to serve first who comes first, as engines do by
        default.

        Raises:
            UserError: if the trace lacks what the order needs.
        """
        ...


@runtime_checkable
class RankedOrder(OrderPolicy, Protocol):
    """Order that changes while requests wait."""

    def rank(self, waiting: Waiting) -> Floats:
        """Find the keys of two or more requests that wait at a rank, before each step: finite
        numbers.
        """
        ...
