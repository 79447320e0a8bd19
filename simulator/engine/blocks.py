"""KV blocks of one data-parallel rank ``d``, shared by the lanes of a pipeline: taking, giving
back, and prefix blocks. Compiled.

A prefix block is cached while a request holds it and afterwards until its blocks are needed; the
least recently used goes first, and of one request's blocks the deepest first (vLLM's automatic
prefix caching). Conserved: free blocks + blocks that requests hold alone + cached prefix blocks =
capacity.
"""

from __future__ import annotations

from simulator.base.compiled import compiled
from simulator.engine.state import Limits, Ranks, Requests


@compiled
def blocks_for(tokens: int, limits: Limits) -> int:
    """KV blocks of a running sequence of ``tokens``."""
    return (tokens + limits.block_tokens - 1) // limits.block_tokens + limits.sequence_blocks


@compiled
def available(ranks: Ranks, d: int, limits: Limits) -> int:
    """Blocks that are free or can be made free."""
    return int(ranks.free_blocks[d] + ranks.num_evictable[d] * limits.prefix_blocks)


@compiled
def take(ranks: Ranks, d: int, count: int, limits: Limits) -> None:
    """Take ``count`` blocks, evicting prefix blocks as needed; the caller has checked that they are
    available.
    """
    ends = ranks.older.shape[1] - 1
    while ranks.free_blocks[d] < count:
        victim = ranks.newer[d, ends]  # the ring's ends: its newer neighbour is the oldest block
        _unlink(ranks, d, victim)
        ranks.in_cache[d, victim] = False
        ranks.free_blocks[d] += limits.prefix_blocks
    ranks.free_blocks[d] -= count
    ranks.num_taken[d] += count


@compiled
def _unlink(ranks: Ranks, d: int, block: int) -> None:
    older, newer = ranks.older[d, block], ranks.newer[d, block]
    ranks.newer[d, older] = newer
    ranks.older[d, newer] = older
    ranks.num_evictable[d] -= 1


@compiled
def _link_newest(ranks: Ranks, d: int, block: int) -> None:
    ends = ranks.older.shape[1] - 1
    newest = ranks.older[d, ends]
    ranks.newer[d, newest] = block
    ranks.older[d, block] = newest
    ranks.newer[d, block] = ends
    ranks.older[d, ends] = block
    ranks.num_evictable[d] += 1


@compiled
def hold(ranks: Ranks, d: int, block: int) -> None:
    """One more request holds a cached prefix block."""
    if ranks.refs[d, block] == 0:
        _unlink(ranks, d, block)
    ranks.refs[d, block] += 1


@compiled
def _let_go(ranks: Ranks, d: int, block: int) -> None:
    ranks.refs[d, block] -= 1
    if ranks.refs[d, block] == 0:
        _link_newest(ranks, d, block)


@compiled
def count_hits(requests: Requests, ranks: Ranks, d: int, r: int, limits: Limits) -> int:
    """Leading prefix blocks of ``r`` that are cached and wholly inside its prompt, less the one
    with its last token.
    """
    if limits.prefix_tokens == 0:
        return 0
    start = requests.prefix_starts[r]
    usable = min(
        requests.prefix_starts[r + 1] - start, (requests.num_input[r] - 1) // limits.prefix_tokens
    )
    hits = 0
    while hits < usable and ranks.in_cache[d, requests.prefix_ids[start + hits]]:
        hits += 1
    return hits


@compiled
def count_idle(requests: Requests, ranks: Ranks, d: int, r: int, hits: int) -> int:
    """Those of the first ``hits`` prefix blocks of ``r`` that no request holds: holding them takes
    from what is available.
    """
    start, idle = requests.prefix_starts[r], 0
    for i in range(start, start + hits):
        idle += ranks.refs[d, requests.prefix_ids[i]] == 0
    return idle


@compiled
def share_prompt(
    requests: Requests, ranks: Ranks, d: int, r: int, reach: int, limits: Limits
) -> None:
    """Put the whole prefix blocks among the first ``reach`` tokens of a prompt into the cache.

    They are there for others from the step that computes them on, as in vLLM, where a step's
    requests may read what others write in it.
    """
    if limits.prefix_tokens == 0:
        return
    start = requests.prefix_starts[r]
    whole = min(
        requests.prefix_starts[r + 1] - start,
        min(requests.num_input[r], reach) // limits.prefix_tokens,
    )
    while requests.shared[r] < whole:
        block = requests.prefix_ids[start + requests.shared[r]]
        if ranks.in_cache[
            d, block
        ]:  # another request computed it meanwhile; this one keeps its own copy
            return
        ranks.in_cache[d, block] = True
        ranks.refs[d, block] = 1
        requests.shared[r] += 1
        requests.blocks[r] -= limits.prefix_blocks


@compiled
def release(requests: Requests, ranks: Ranks, d: int, r: int) -> None:
    """Give back everything that ``r`` holds."""
    ranks.free_blocks[d] += requests.blocks[r]
    requests.blocks[r] = 0
    start = requests.prefix_starts[r]
    for i in range(requests.shared[r] - 1, -1, -1):
        _let_go(ranks, d, requests.prefix_ids[start + i])
    requests.shared[r] = 0


@compiled
def keep_order(requests: Requests, ranks: Ranks, d: int, r: int, limits: Limits) -> None:
    """Remember where in the line of free blocks those of ``r`` are about to stand, which it loses
    now.

    Blocks are taken from the front of the line and given back at its end, the last of a sequence
    first, so that its beginning stays for longest. A place is how many blocks have been taken once
    it is at the front. Only full blocks are found again.
    """
    first = requests.shared[r] * limits.prefix_blocks
    full = min(requests.computed[r] // limits.block_tokens - first, requests.blocks[r])
    end = ranks.num_taken[d] + ranks.free_blocks[d] + requests.blocks[r]
    requests.kept_first[r], requests.kept_blocks[r], requests.kept_end[r] = first, full, end


@compiled
def count_kept(requests: Requests, ranks: Ranks, r: int, d: int, hits: int, limits: Limits) -> int:
    """Blocks behind the first ``hits`` prefix blocks that ``r`` lost and nobody has taken since."""
    if requests.kept_first[r] != hits * limits.prefix_blocks:
        return 0
    return int(max(0, min(requests.kept_blocks[r], requests.kept_end[r] - ranks.num_taken[d])))


@compiled
def take_back(requests: Requests, ranks: Ranks, r: int, d: int, count: int) -> None:
    """Take ``count`` blocks that ``r`` lost out of the line; those behind them move up."""
    if count > 0:
        ranks.free_blocks[d] -= count
        for lane in range(d, len(ranks.head), len(ranks.free_blocks)):
            other = ranks.head[lane]
            while other >= 0 and requests.preemptions[other] > 0:  # they wait first in line
                if requests.kept_end[other] > requests.kept_end[r]:
                    requests.kept_end[other] -= count
                other = requests.following[other]
    requests.kept_blocks[r] = 0
