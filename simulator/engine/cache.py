"""KV cache of one data-parallel rank ``d``, shared by the lanes of a pipeline: looking up what is
cached of a prompt, allocation, release and eviction of blocks. Compiled. Nothing else reads what is
free.

A prefix block is cached while a request holds it and afterwards until its blocks are needed; the
least recently used is evicted first, and of one request's blocks the deepest first (vLLM's
automatic prefix caching). Conserved: free blocks + blocks that requests hold alone + cached prefix
blocks = capacity.

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
def count_available(ranks: Ranks, d: int, limits: Limits) -> int:
    """Number of blocks that are free or can be freed by eviction."""
    cache = ranks.caches[d]
    return int(cache.free_blocks + cache.num_evictable * limits.prefix_blocks)


def count_all_available(ranks: Ranks, limits: Limits) -> Ints:
    """:func:`count_available` of all ranks at once."""
    caches = ranks.caches
    found: Ints = caches.free_blocks + caches.num_evictable * limits.prefix_blocks
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
        _evict(prefixes)
        cache.num_evictable -= 1
        cache.free_blocks += limits.prefix_blocks
    cache.free_blocks -= count
    cache.num_taken += count


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


@jit_inner
def _link(prefixes: Records, block: int, newer: int) -> None:
    """Put a block into the ring next to a newer one; the newest is next to the ring's ends."""
    older = prefixes[newer].older
    prefixes[older].newer = block
    prefixes[block].older = older
    prefixes[block].newer = newer
    prefixes[newer].older = block


@jit_inner
def hold_block(ranks: Ranks, d: int, block: int) -> None:
    """Add a reference of one more request to a cached prefix block."""
    prefixes = ranks.prefixes[d, 0]
    if prefixes[block].refs == 0:
        _unlink(prefixes, block)
        ranks.caches[d].num_evictable -= 1
    prefixes[block].refs += 1


@jit_inner
def _release_block(ranks: Ranks, d: int, block: int) -> None:
    prefixes = ranks.prefixes[d, 0]
    prefixes[block].refs -= 1
    if prefixes[block].refs == 0:
        _link(prefixes, block, len(prefixes) - 1)
        ranks.caches[d].num_evictable += 1


@jit_inner
def count_hits(requests: Requests, prefixes: Records, d: int, r: int, limits: Limits) -> int:
    """Count the leading prefix blocks of ``r`` that the GPU has and that are wholly inside its
    prompt, without the one that holds its last token.

    Args:
        prefixes: of a replica's ranks (:attr:`simulator.engine.state.Ranks.prefixes`).
    """
    return _count_leading(requests, prefixes, d, r, limits, 1)


@jit_inner
def count_found(requests: Requests, prefixes: Records, d: int, r: int, limits: Limits) -> int:
    """Count the leading prefix blocks of ``r`` that any tier has, as :func:`count_hits` does."""
    return _count_leading(requests, prefixes, d, r, limits, prefixes.shape[1])


@jit_inner
def _count_leading(
    requests: Requests, prefixes: Records, d: int, r: int, limits: Limits, num_tiers: int
) -> int:
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
    """Count the prefix blocks of ``r`` without the one that holds its last token."""
    num_blocks = requests.prefix_starts[r + 1] - requests.prefix_starts[r]
    return int(min(num_blocks, (requests.each[r].num_input - 1) // limits.prefix_tokens))


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
def release(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Release all blocks that ``r`` holds."""
    request, start = requests.each[r], requests.prefix_starts[r]
    ranks.caches[d].free_blocks += request.blocks
    request.blocks = 0
    for i in range(request.shared - 1, -1, -1):
        _release_block(ranks, d, requests.prefix_ids[start + i])
    request.shared = 0


@jit_inner
def keep_order(requests: Requests, ranks: Ranks, d: int, r: int, limits: Limits) -> None:
    """Remember the positions in the free queue that the blocks of ``r``, which it is about to lose,
    will get.

    Blocks are taken from the front of the free queue and appended at its end, the last of a
    sequence first, so that its beginning stays longest. A position is the number of blocks that
    have been taken once it is at the front. Only full blocks are found again.
    """
    request, cache = requests.each[r], ranks.caches[d]
    first = request.shared * limits.prefix_blocks
    request.kept_first = first
    request.kept_blocks = min(request.computed // limits.block_tokens - first, request.blocks)
    request.kept_end = cache.num_taken + cache.free_blocks + request.blocks
    ranks.each[request.dp_rank].num_bereft += request.kept_blocks > 0


@jit_inner
def count_kept(requests: Requests, ranks: Ranks, r: int, d: int, hits: int, limits: Limits) -> int:
    """Count the blocks behind the first ``hits`` prefix blocks that ``r`` lost and no request has
    taken since.
    """
    request = requests.each[r]
    skipped = hits * limits.prefix_blocks - request.kept_first  # others have cached these since
    left = min(request.kept_blocks, request.kept_end - ranks.caches[d].num_taken)
    return int(max(0, left - skipped)) if skipped >= 0 else 0


@jit_inner
def reclaim_blocks(requests: Requests, ranks: Ranks, r: int, d: int, count: int) -> None:
    """Reclaim ``count`` blocks that ``r`` lost from the free queue; those behind them move up."""
    rows = requests.each
    if count > 0:
        ranks.caches[d].free_blocks -= count
        for lane in range(d, len(ranks.each), len(ranks.caches)):
            rank = ranks.each[lane]
            other, num_left = rank.waiting.first, rank.num_bereft
            while num_left > 0 and other >= 0:
                num_left -= rows[other].kept_blocks > 0
                if rows[other].kept_end > rows[r].kept_end:
                    rows[other].kept_end -= count
                other = find_another(rank.waiting, rows, other)
    ranks.each[rows[r].dp_rank].num_bereft -= rows[r].kept_blocks > 0
    rows[r].kept_blocks = 0
