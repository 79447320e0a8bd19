"""Who loses its KV blocks when these run out, to be computed again.

vLLM takes those of the request that was admitted last, which then waits first in line; with
``--scheduling-policy priority`` those of ``max(running, key=(priority, arrival_time))``. SGLang
takes those of the requests with the fewest output tokens before a decode step that has no room, and
they wait last in line.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.reference.rank import Rank
from tests.reference.requests import Request


def preempt(rank: Rank, request: Request) -> None:
    """Take the blocks of a request that runs."""
    rank.cache.preempt(request)
    rank.running.remove(request)
    rank.budget += rank.tokens.pop(request, 0)
    rank.is_full = False
    request.computed = request.transferred = 0
    request.preemptions += 1
    if rank.settings.rules.output_share:
        request.promised = 0  # SGLang drops what is under way
    if request.may_go_on:  # else its last token is on the way
        rank.queue(rank.waiting, request, None if rank.settings.rules.output_share else 0)


def preempt_last(ranks: Sequence[Rank]) -> Request:
    """Take the blocks of the request that was admitted last to ranks that share them; by priority
    those of the one that would wait behind all others.
    """
    rank, request = max(
        ((rank, request) for rank in ranks for request in rank.running),
        key=lambda found: found[0].find_place(found[1]) or (0.0, 0.0, found[1].admission),
    )
    preempt(rank, request)
    return request


def retract(rank: Rank) -> None:
    """Make room for a decode step as SGLang does (``retract_decode``), and let the share of outputs
    that its admission counts on follow (``NewTokenRatioTracker``).
    """
    rules, running = rank.settings.rules, rank.running
    if not rules.output_share or not running:
        return
    count = len(running)
    while len(running) > 1 and count_next_blocks(rank) > rank.cache.num_available:
        # Of equals the last.
        preempt(rank, min(reversed(running), key=lambda one: (one.counted, -one.num_input)))
        rank.cache.make_spare(len(running) * rules.retract_steps)
    if len(running) == count:
        less = rank.output_share - rules.output_share_decay
        rank.output_share = max(rules.least_output_share, less)
        return
    used = sum(request.generated + rules.retract_steps for request in running)
    rank.output_share = min(1.0, used / (1 + sum(request.most for request in running)))


def count_next_blocks(rank: Rank) -> int:
    """Blocks that one more token of each running request takes, and its draft."""
    more = 1 + len(rank.settings.accepted)
    return sum(
        rank.cache.count_missing(request, request.computed + more)
        for request in rank.running
        if request.may_go_on
    )
