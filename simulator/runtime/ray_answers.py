"""Answers of ranks that are Ray actors, and who of them gives none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from simulator.base.errors import UserError
from simulator.runtime.faults import ShardsLostError
from simulator.runtime.transport import PeerLostError

_GRACE_S = 30.0
"""Seconds after a rank's death within which the others report that they miss it. They do so at
once, but on a machine with twice as many busy processes as cores one was seen to need over 10 s."""
_HUNG_GRACE_S = 3.0
"""Seconds after one rank has waited in vain within which the others that waited report it."""


def collect_answers(
    answers: dict[int, Any], timeout_s: float | None, abort: Callable[[], None] = lambda: None
) -> dict[int, Any]:
    """Collect every rank's answer.

    Args:
        answers: references to them, by rank.
        timeout_s: for all of them together; a rank that reports that another did not come does so
            after this time.
        abort: called when a rank has died, so that the others wait no longer for it.

    Raises:
        ShardsLostError: naming the ranks that died, and those that are hung: they answer nothing
            while others have given up.
    """
    rank_of = {answer: rank for rank, answer in answers.items()}
    pending = list(rank_of)
    found: dict[int, Any] = {}
    died: set[int] = set()
    complaints: list[str] = []
    # Twice: a rank may come to an exchange just before the others give up on it.
    until_s = None if timeout_s is None else time.monotonic() + 2 * timeout_s + _HUNG_GRACE_S
    while pending:
        left_s = 1.0 if until_s is None else min(1.0, until_s - time.monotonic())
        if left_s <= 0:
            break
        ready, pending = ray.wait(pending, timeout=left_s)
        for answer in ready:
            rank = rank_of[answer]
            try:
                found[rank] = ray.get(answer)
            except RayActorError:
                died.add(rank)
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                if not isinstance(error.cause, PeerLostError):
                    raise
                complaints.append(str(error.cause))
        if (died or complaints) and ready:
            grace_s = _GRACE_S if died else max(_HUNG_GRACE_S, 0.2 * (timeout_s or 0.0))
            until_s = time.monotonic() + grace_s
            if died:
                abort()
    if died or complaints or pending:
        hung = {rank_of[answer] for answer in pending}
        raise ShardsLostError(died, hung, complaints, timeout_s)
    return found
