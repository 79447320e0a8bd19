"""Acceptance of draft tokens in speculative decoding. Compiled.

Each draw depends only on the seed, the request and the token's position in the output, so that a
request keeps the same tokens whichever batches it is in, at every fidelity.
"""

from __future__ import annotations

import numpy as np

from simulator.base.jit import jit_inner
from simulator.engine.state import Limits, Requests

_STEP, _FIRST, _SECOND = (
    np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_27, _30, _31, _11 = (np.uint64(bits) for bits in (27, 30, 31, 11))
_UNIT = 2.0**-53
"""Distance of neighbouring doubles of 53 random bits."""


@jit_inner
def draw_uniform(seed: int, request: int, place: int) -> float:
    """Draw a number from 0 to 1 for one output token: SplitMix64 (Steele, Lea and Flood, "Fast
    Splittable Pseudorandom Number Generators", OOPSLA 2014), seeded for the request.
    """
    state = _mix(np.uint64(seed) + _STEP * np.uint64(request + 1))
    return float(_mix(state + _STEP * np.uint64(place + 1)) >> _11) * _UNIT


@jit_inner
def _mix(z: np.uint64) -> np.uint64:
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@jit_inner
def count_kept_tokens(requests: Requests, limits: Limits, r: int, new: int) -> int:
    """Count the output tokens that the request in row ``r`` gets from a step that computes ``new``
    of its tokens: one, and its draft tokens up to the first that is not accepted, at most the
    request's remaining output.
    """
    request = requests.each[r]
    left = request.num_output - request.generated
    kept, number = 1, request.number
    while (
        kept < min(new, left)
        and draw_uniform(limits.draft_seed, number, request.generated + kept)
        < limits.accepted[kept - 1]
    ):
        kept += 1
    return kept
