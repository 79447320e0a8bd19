"""Which requests start, and which get KV blocks for caches that are to come.

First come, first served, until one does not fit. What must have room is the first chunk and, since
vLLM 0.19, all tokens that are known (``scheduler_reserve_full_isl``); the whole output, in
TensorRT-LLM's GUARANTEED_NO_EVICT; or the output and a share of those of others, in SGLang's
``PrefillAdder``. While others run, a watermark of blocks stays free (vLLM since 0.23).
"""

from __future__ import annotations

import math

from tests.reference.cache import Tier
from tests.reference.rank import Rank, count_output
from tests.reference.requests import Request, Stage


def admit(rank: Rank, now_s: float) -> None:
    """Start waiting requests while tokens, places and blocks last."""
    most, rules = rank.settings.rules.max_sequences, rank.settings.rules
    _admit_ready(rank, now_s)
    if rules.output_share and rank.is_full and rank.running:
        rank.limited_by = "kv_cache"
        return
    expected = rank.count_expected_output()
    while rank.waiting and len(rank.running) < most:
        request = rank.waiting[0]
        may_start = not rank.ready and rank.budget > 0
        places = most - len(rank.running + rank.reading + rank.ready)
        has_place = places > 0 or not rank.cache.tiers
        if not has_place or not (may_start or _is_read(rank, request, now_s)):
            break
        limit = _try_to_start(rank, request, expected, now_s)
        if limit is not None:
            rank.limited_by, rank.is_full = limit, limit == "kv_cache"
            return
        expected += count_output(request)
    here = rank.running + (rank.reading + rank.ready if rank.cache.tiers else [])
    rank.limited_by = "max_sequences" if len(here) >= most else "token_budget"


def _admit_ready(rank: Rank, now_s: float) -> None:
    """Start requests whose caches have come."""
    rules = rank.settings.rules
    while rank.ready and rank.budget and len(rank.running) < rules.max_sequences:
        request = rank.ready[0]
        new = request.known - request.transferred
        if rules.splits_prompts:
            new = min(new, rank.budget)
        if rank.budget < min(new, rules.token_budget):
            return
        request.computed = request.transferred
        rank.cache.share_prompt(request, request.computed + new, now_s)
        rank.ready.remove(request)
        rank.start(request, new, now_s)


def _find(rank: Rank, request: Request, now_s: float) -> tuple[list[int], list[int], list[Tier]]:
    """What there is of a request: prefix blocks on the GPU, and behind those either blocks that it
    lost or prefix blocks that tiers have, whichever are more.
    """
    prefixes = rank.cache.find_prefix(request)
    lost = rank.cache.find_lost(request, len(prefixes))
    tiers = rank.cache.find_readable(request, len(prefixes), now_s)
    if tiers and len(tiers) * rank.settings.prefix_blocks > len(lost):
        return prefixes, [], tiers
    return prefixes, lost, []


def _is_read(rank: Rank, request: Request, now_s: float) -> bool:
    """Whether a request begins with blocks that are read before it starts."""
    return bool(_find(rank, request, now_s)[2])


def _try_to_start(rank: Rank, request: Request, expected: int, now_s: float) -> str | None:
    """Start a request, or say what is missing."""
    cache, rules = rank.cache, rank.settings.rules
    prefixes, lost, tiers = _find(rank, request, now_s)
    found = (len(prefixes) + len(tiers)) * rank.settings.prefix_tokens
    found += len(lost) * rank.settings.block_tokens
    new = request.known - found
    if rules.splits_prompts and not tiers:
        new = min(new, rank.budget)
    taken = _whole(rank, request) if rules.reserves_output else found + new
    asked = _count_asked(rank, request, taken, expected)
    blocks = rank.settings.blocks_for(asked) - cache.count_in_use(prefixes)
    if not _has_room(rank, blocks, beside=rank.running):
        return "kv_cache"
    if not tiers and new > rank.budget and rank.budget < rules.token_budget:
        return "token_budget"
    cache.use_again(request, prefixes, lost)
    cache.grow(request, taken)
    rank.waiting.remove(request)
    first = len(prefixes)
    if tiers:
        found_s = [tier.read(tiers.count(tier), now_s) for tier in dict.fromkeys(tiers)]
        request.read_s, request.transferred, request.stage = max(found_s), found, Stage.READ
        if request.scheduled_s is None:
            request.read = len(tiers) * rank.settings.prefix_tokens
        rank.reading.append(request)
        cache.write(request, 0, first, now_s)
        cache.write(request, first, first + len(tiers), math.inf)
        return None
    cache.write(request, 0, first, now_s)
    request.computed = found
    cache.share_prompt(request, found + new, now_s)
    rank.start(request, new, now_s)
    return None


def _has_room(rank: Rank, num_blocks: int, beside: list[Request]) -> bool:
    """Whether so many blocks may be taken for a request beside others."""
    watermark = rank.settings.watermark_blocks if beside else 0
    return num_blocks + watermark <= rank.cache.num_available


def _whole(rank: Rank, request: Request) -> int:
    """Tokens of a request at its end, a last draft included."""
    return request.num_input + request.most + len(rank.settings.accepted)


def _count_asked(rank: Rank, request: Request, taken: int, expected: int) -> int:
    """Tokens that must have room so that a request which takes blocks for ``taken`` may start."""
    if rank.settings.rules.checks_known:
        return max(taken, request.known)
    if rank.settings.rules.output_share:
        return request.known + count_output(request) + expected
    return taken


def reserve(rank: Rank, now_s: float) -> list[Request]:
    """Take blocks for caches that are to come, as for requests that are admitted, behind those
    that have lost theirs. Returns whom for.
    """
    found: list[Request] = []
    while rank.line and not rank.waiting:
        request, rules = rank.line[0], rank.settings.rules
        if len(rank.running) >= rules.max_sequences:
            rank.limited_by = "max_sequences"
            break
        taken = _whole(rank, request) if rules.reserves_output else request.known
        asked = _count_asked(rank, request, taken, rank.count_expected_output())
        blocks = rank.settings.blocks_for(asked)
        if not _has_room(rank, blocks, beside=rank.running + rank.reserved):
            rank.limited_by = "kv_cache"
            break
        rank.line.remove(request)
        rank.cache.grow(request, taken)
        rank.reserved.append(request)
        request.stage, request.reserved_s = Stage.RESERVED, now_s
        found.append(request)
    return found
