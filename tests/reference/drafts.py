"""Which tokens of a draft are kept: drawn by request and place in its output, whatever batch the
request is in (SplitMix64; Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

from tests.reference.requests import Request
from tests.reference.settings import Settings

_MASK = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * _FIRST & _MASK
    z = (z ^ (z >> 27)) * _SECOND & _MASK
    return z ^ (z >> 31)


def _draw(seed: int, request: int, place: int) -> float:
    """A number from 0 to 1."""
    state = _mix(seed + _STEP * (request + 1) & _MASK)
    return (_mix(state + _STEP * (place + 1) & _MASK) >> 11) * 2.0**-53


def count_kept(settings: Settings, request: Request, num_tokens: int) -> int:
    """Output tokens that a decode gets out of so many that a step verifies: one, and those of the
    draft before the first that is refused, but no more than were asked for.
    """
    kept = 1
    for accepted in settings.accepted[: min(num_tokens, request.left) - 1]:
        if _draw(settings.draft_seed, request.number, request.generated + kept) >= accepted:
            break
        kept += 1
    return kept
