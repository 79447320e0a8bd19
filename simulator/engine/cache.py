"""KV cache of one data-parallel rank ``d``, shared by the lanes of a pipeline: looking up what is
cached of a prompt, allocation, release and eviction of blocks. Compiled. Nothing else reads what is
free.

A prefix block is cached while a request holds it and afterwards until its blocks are needed; the
least recently used is evicted first, and of one request's blocks the deepest first (vLLM's
automatic prefix caching). Other full blocks, of outputs and of prompts that nobody shares, are in
the same line: only the request that lost them finds them again, but prefix blocks are evicted in
their turn. They are counted, each with the prefix block behind it in line. Conserved: free blocks +
those full ones that nobody holds + blocks that requests hold alone + cached prefix blocks =
capacity.

Tiers below the GPU keep copies: a block is written to each from the step on that computes or finds
it, and can be read once the tier's link, one block after another, has written it. Behind the
blocks that the GPU has, a request reads those that tiers have, each from the first that does, into
blocks of its own while it waits (vLLM's asynchronous connectors). Each tier evicts the least
recently used, and none without those that continue it.
"""

from __future__ import annotations

import math

from simulator.base.jit import jit_apart, jit_inner
from simulator.engine.queue import find_another
from simulator.engine.state import Ints, Limits, Ranks, Records, Requests


@jit_inner
def blocks_for(tokens: int, limits: Limits) -> int:
    """Number of KV blocks of a running sequence of ``tokens``."""
    return (tokens + limits.block_tokens - 1) // limits.block_tokens + limits.sequence_blocks


@jit_inner
def count_missing(request: Records, tokens: int, limits: Limits) -> int:
    """Number of KV blocks that a request lacks for its first ``tokens``."""
    held = request.blocks + request.shared * limits.prefix_blocks
    return int(blocks_for(tokens, limits) - held)


@jit_inner
def count_available(ranks: Ranks, d: int, limits: Limits) -> int:
    """Number of blocks that are free or can be freed by eviction."""
    cache = ranks.caches[d]
    return int(cache.free_blocks + cache.num_full + cache.num_evictable * limits.prefix_blocks)


def count_all_available(ranks: Ranks, limits: Limits) -> Ints:
    """:func:`count_available` of all ranks at once."""
    caches = ranks.caches
    prefixes: Ints = caches.num_evictable * limits.prefix_blocks
    found: Ints = caches.free_blocks + caches.num_full + prefixes
    return found


@jit_inner
def measure_use(ranks: Ranks, d: int, limits: Limits) -> float:
    """Share of the blocks that requests hold."""
    capacity = ranks.caches[d].capacity_blocks
    return float((capacity - count_available(ranks, d, limits)) / capacity)


def give_back(ranks: Ranks, d: int, count: int) -> None:
    """Free ``count`` blocks that were allocated in advance."""
    ranks.caches.free_blocks[d] += count


@jit_inner
def allocate_blocks(ranks: Ranks, d: int, count: int, limits: Limits) -> None:
    """Allocate ``count`` blocks, evicting prefix blocks as needed; the caller has checked that
    enough are available.
    """
    cache, prefixes = ranks.caches[d], ranks.prefixes[d, 0]
    while cache.free_blocks < count:
        victim = prefixes[prefixes[len(prefixes) - 1].newer]
        if victim.full_before > 0:
            taken = min(victim.full_before, count - cache.free_blocks)
            victim.full_before -= taken
            cache.num_full -= taken
        else:
            taken = limits.prefix_blocks
            _evict(prefixes)
            cache.num_evictable -= 1
        cache.free_blocks += taken
        cache.num_taken += taken
    cache.free_blocks -= count


@jit_inner
def _evict(prefixes: Records) -> None:
    """Evict the least recently used block of a tier."""
    victim = prefixes[len(prefixes) - 1].newer  # the newer neighbour of the ring's ends is oldest
    _unlink(prefixes, victim)
    prefixes[victim].since_s = math.inf


@jit_inner
def _unlink(prefixes: Records, block: int) -> None:
    older, newer = prefixes[block].older, prefixes[block].newer
    prefixes[older].newer = newer
    prefixes[newer].older = older
    prefixes[newer].full_before += prefixes[block].full_before
    prefixes[block].full_before = 0


@jit_inner
def _link(prefixes: Records, block: int, newer: int) -> None:
    """Put a block into the ring next to a newer one; the newest is next to the ring's ends."""
    older = prefixes[newer].older
    prefixes[older].newer = block
    prefixes[block].older = older
    prefixes[block].newer = newer
    prefixes[newer].older = block


@jit_inner
def hold_block(requests: Requests, ranks: Ranks, d: int, block: int, limits: Limits) -> None:
    """Add a reference of one more request to a cached prefix block."""
    prefixes = ranks.prefixes[d, 0]
    if prefixes[block].refs == 0:
        _move_up(requests, ranks, d, prefixes[block].released, limits.prefix_blocks)
        _unlink(prefixes, block)
        ranks.caches[d].num_evictable -= 1
    prefixes[block].refs += 1


@jit_inner
def _count_release(ranks: Ranks, d: int) -> int:
    ranks.caches[d].num_released += 1
    return int(ranks.caches[d].num_released)


@jit_inner
def count_hits(
    requests: Requests, prefixes: Records, d: int, r: int, limits: Limits, num_tiers: int
) -> int:
    """Count the leading prefix blocks of ``r`` that any of the first tiers, of which the first is
    the GPU, has and that are wholly inside its prompt, without one that holds the last token that
    it has.

    Args:
        prefixes: of a replica's ranks (:attr:`simulator.engine.state.Ranks.prefixes`).
    """
    if limits.prefix_tokens == 0:
        return 0
    start, usable, count = requests.prefix_starts[r], _count_usable(requests, r, limits), 0
    while count < usable:
        block, since_s = requests.prefix_ids[start + count], math.inf
        for t in range(num_tiers):
            since_s = min(since_s, prefixes[d, t, block].since_s)
        if since_s == math.inf:
            break
        count += 1
    return count


@jit_inner
def _count_usable(requests: Requests, r: int, limits: Limits) -> int:
    """Count the whole prefix blocks of ``r`` without one that holds the last token that it has."""
    request = requests.each[r]
    num_blocks = requests.prefix_starts[r + 1] - requests.prefix_starts[r]
    most = min(request.num_input, request.num_input + request.generated - 1)
    return int(min(num_blocks, most // limits.prefix_tokens))


@jit_inner
def count_idle(requests: Requests, ranks: Ranks, d: int, r: int, hits: int) -> int:
    """Count those of the first ``hits`` prefix blocks of ``r`` that no request holds: holding them
    takes from the available blocks.
    """
    start, idle = requests.prefix_starts[r], 0
    for i in range(start, start + hits):
        idle += ranks.prefixes[d, 0, requests.prefix_ids[i]].refs == 0
    return idle


@jit_inner
def share_prompt(
    requests: Requests, ranks: Ranks, d: int, r: int, reach: int, limits: Limits, now_s: float
) -> None:
    """Put the whole prefix blocks among the first ``reach`` tokens of a prompt into the cache.

    Other requests find them from the step that computes them on, as in vLLM, where a step's
    requests may read what others write in it.
    """
    if limits.prefix_tokens == 0:
        return
    request, start = requests.each[r], requests.prefix_starts[r]
    whole = min(
        requests.prefix_starts[r + 1] - start,
        min(request.num_input, reach) // limits.prefix_tokens,
    )
    first = request.shared
    while request.shared < whole:
        block = ranks.prefixes[d, 0, requests.prefix_ids[start + request.shared]]
        if block.since_s < math.inf:
            break  # another request computed it meanwhile; this one keeps its own copy
        block.since_s = now_s
        block.refs = 1
        request.shared += 1
        request.blocks -= limits.prefix_blocks
    if ranks.tiers.shape[1] > 0:
        write_blocks(requests, ranks, d, r, first, request.shared, now_s)


@jit_apart
def touch_blocks(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Make the prefix blocks of ``r``, which has finished, the most recently used of all tiers."""
    count = requests.prefix_starts[r + 1] - requests.prefix_starts[r]
    write_blocks(requests, ranks, d, r, 0, count, math.inf)


@jit_apart
def write_blocks(
    requests: Requests, ranks: Ranks, d: int, r: int, first: int, end: int, now_s: float
) -> None:
    """Write a request's prefix blocks from ``first`` to ``end`` to all tiers, where those that are
    there already become the most recently used: each right behind the one before it, so that
    the deepest are evicted first (vLLM's ``LRUCachePolicy``, by request and position).

    Args:
        now_s: the present; infinite to write none that are not there.
    """
    start = requests.prefix_starts[r]
    for t in range(ranks.tiers.shape[1]):
        prefixes, tier = ranks.prefixes[d, t + 1], ranks.tiers[d, t]
        before = requests.prefix_ids[start + first - 1] if first > 0 else len(prefixes) - 1
        for i in range(start + first, start + end):
            if i > start and prefixes[before].since_s == math.inf:
                break  # nobody finds it without the one before it
            block = requests.prefix_ids[i]
            if block == before:
                continue
            if prefixes[block].since_s < math.inf:
                _unlink(prefixes, block)
            elif now_s == math.inf:
                break
            elif tier.num_held < tier.capacity_blocks:
                tier.num_held += 1
                _write(tier, prefixes, block, now_s)
            elif prefixes[len(prefixes) - 1].newer != before:
                _evict(prefixes)
                _write(tier, prefixes, block, now_s)
            else:
                break
            _link(prefixes, block, before)
            before = block


@jit_inner
def _write(tier: Records, prefixes: Records, block: int, now_s: float) -> None:
    tier.written_until_s = max(tier.written_until_s, now_s) + tier.block_write_s
    prefixes[block].since_s = tier.written_until_s


@jit_apart
def count_readable(
    requests: Requests, ranks: Ranks, d: int, r: int, hits: int, limits: Limits, now_s: float
) -> int:
    """Count the prefix blocks of ``r`` behind its first ``hits`` that can be read from tiers."""
    end = hits
    while end < _count_usable(requests, r, limits):
        if _find_tier(ranks, d, requests.prefix_ids[requests.prefix_starts[r] + end], now_s) < 0:
            break
        end += 1
    return end - hits


@jit_inner
def _find_tier(ranks: Ranks, d: int, block: int, now_s: float) -> int:
    """Find the first tier that has a block, -1 for none."""
    for t in range(ranks.tiers.shape[1]):
        if ranks.prefixes[d, t + 1, block].since_s <= now_s:
            return t
    return -1


@jit_inner
def read_blocks(
    requests: Requests, ranks: Ranks, d: int, r: int, hits: int, end: int, now_s: float
) -> None:
    """Begin to read the prefix blocks of ``r`` from ``hits`` to ``end`` from tiers, each of which
    reads for one request after another.
    """
    request, start = requests.each[r], requests.prefix_starts[r]
    is_first = math.isnan(request.scheduled_s)
    request.read_s = now_s
    for t in range(ranks.tiers.shape[1]):
        tier, count = ranks.tiers[d, t], 0
        for i in range(start + hits, start + end):
            count += _find_tier(ranks, d, requests.prefix_ids[i], now_s) == t
        if count > 0:
            tier.read_until_s = max(tier.read_until_s, now_s) + count * tier.block_read_s
            request.read_s = max(request.read_s, tier.read_until_s + tier.latency_s)
            tier.num_hits += count * is_first


@jit_inner
def release(requests: Requests, ranks: Ranks, d: int, r: int, limits: Limits) -> None:
    """Release all blocks that ``r`` holds."""
    release_known(requests, ranks, d, r, requests.each[r].computed, limits)


@jit_inner
def release_known(
    requests: Requests, ranks: Ranks, d: int, r: int, known: int, limits: Limits
) -> None:
    """Release all blocks that ``r`` holds, of which those of its first ``known`` tokens can be
    found by their content.

    Of those that it holds alone the full ones go to the end of the line in which blocks are taken
    when no others are free, the others there before them, or not into it.
    """
    request, start, cache = requests.each[r], requests.prefix_starts[r], ranks.caches[d]
    prefixes, end = ranks.prefixes[d, 0], ranks.prefixes.shape[2] - 1
    in_line = _count_full(request, known, limits)
    if limits.rules.finds_full and not limits.rules.frees_partial_first:
        in_line = request.blocks
    cache.free_blocks += request.blocks - in_line
    cache.num_full += in_line
    prefixes[end].full_before += in_line
    for i in range(request.shared - 1, -1, -1):
        block = requests.prefix_ids[start + i]
        prefixes[block].refs -= 1
        if prefixes[block].refs == 0:
            _link(prefixes, block, end)
            prefixes[block].full_before = prefixes[end].full_before
            prefixes[end].full_before = 0
            prefixes[block].released = _count_release(ranks, d)
            cache.num_evictable += 1
    request.blocks = request.shared = 0


@jit_inner
def _count_full(request: Records, known: int, limits: Limits) -> int:
    """Count the full blocks that a request holds alone among those of its first ``known``
    tokens.
    """
    if not limits.rules.finds_full:
        return 0
    first = request.shared * limits.prefix_blocks
    return int(max(0, min(known // limits.block_tokens - first, request.blocks)))


@jit_inner
def keep_order(
    requests: Requests, ranks: Ranks, d: int, r: int, known: int, limits: Limits
) -> None:
    """Remember the positions in the line that the full blocks among the first ``known`` tokens of
    ``r``, which it is about to lose, will get.

    The last of a sequence comes first, so that its beginning stays longest. A position is the
    number of blocks that have been taken from the line once it is at the front.
    """
    request, cache, rank = requests.each[r], ranks.caches[d], ranks.each[requests.each[r].dp_rank]
    request.kept_first = request.shared * limits.prefix_blocks
    request.kept_blocks = _count_full(request, known, limits)
    in_line = count_available(ranks, d, limits) - cache.free_blocks
    in_line += request.kept_blocks if limits.rules.frees_partial_first else request.blocks
    request.kept_end = cache.num_taken + in_line
    request.kept_since = _count_release(ranks, d)
    rank.num_bereft += request.kept_blocks > 0


@jit_inner
def count_kept(requests: Requests, ranks: Ranks, r: int, d: int, hits: int, limits: Limits) -> int:
    """Count the blocks behind the first ``hits`` prefix blocks that ``r`` lost and no request has
    taken since.
    """
    request = requests.each[r]
    skipped = hits * limits.prefix_blocks - request.kept_first  # others have cached these since
    left = min(request.kept_blocks, request.kept_end - ranks.caches[d].num_taken)
    if skipped < 0 or (limits.rules.output_share > 0 and left < request.kept_blocks):
        return 0  # SGLang's tree evicts the tokens of a prompt together
    return int(max(0, left - skipped))


@jit_inner
def evict_blocks(ranks: Ranks, d: int, count: int, limits: Limits) -> None:
    """Evict ``count`` blocks from the line, or all."""
    cache = ranks.caches[d]
    in_line = count_available(ranks, d, limits) - cache.free_blocks
    wanted = cache.free_blocks + min(count, in_line)
    allocate_blocks(ranks, d, wanted, limits)
    cache.free_blocks += wanted


@jit_inner
def reclaim_blocks(requests: Requests, ranks: Ranks, r: int, d: int, count: int) -> None:
    """Reclaim ``count`` blocks that ``r`` lost from the line."""
    request, prefixes = requests.each[r], ranks.prefixes[d, 0]
    if count > 0:
        behind = end = len(prefixes) - 1
        while prefixes[behind].older != end:
            if prefixes[prefixes[behind].older].released < request.kept_since:
                break
            behind = prefixes[behind].older
        prefixes[behind].full_before -= count
        ranks.caches[d].num_full -= count
        _move_up(requests, ranks, d, request.kept_since, count)
    ranks.each[request.dp_rank].num_bereft -= request.kept_blocks > 0
    request.kept_blocks = 0


@jit_inner
def _move_up(requests: Requests, ranks: Ranks, d: int, since: int, count: int) -> None:
    """Move the lost blocks that stand in line behind others up, of which ``count`` are taken out.

    Args:
        since: when these came into it, by number.
    """
    rows = requests.each
    for lane in range(d, len(ranks.each), len(ranks.caches)):
        rank = ranks.each[lane]
        other, num_left = rank.waiting.first, rank.num_bereft
        while num_left > 0 and other >= 0:
            num_left -= rows[other].kept_blocks > 0
            if rows[other].kept_since > since:
                rows[other].kept_end -= count
            other = find_another(rank.waiting, rows, other)
