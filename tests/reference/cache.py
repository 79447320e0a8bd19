"""KV blocks of one data-parallel rank, each with a number of its own.

vLLM's block pool (``vllm/v1/core/block_pool.py``): blocks are taken from the front of a line of
free ones and given back at its end, the last of a sequence first, so that its beginning stays for
longest; what a free block holds can be used again until somebody takes it. Prefix blocks stay
cached while requests hold them, and then until blocks are needed and no other is free: the least
recently used goes first, and of one sequence the deepest.
"""

from __future__ import annotations

import math
from itertools import islice, takewhile

from tests.reference.requests import Request
from tests.reference.settings import Settings


class Tier:
    """Memory below the GPU, which holds copies of prefix blocks: the least recently used goes
    first, but none before those that continue it.
    """

    def __init__(self, most: int, read_s: float, write_s: float, latency_s: float) -> None:
        self._most, self._read_s, self._write_s, self._latency_s = most, read_s, write_s, latency_s
        self.held: list[int] = []
        """Blocks, the least recently used first."""
        self._there_s: dict[int, float] = {}
        """When each can be read."""
        self._reads_until_s = self._writes_until_s = 0.0

    def has(self, prefix: int, now_s: float) -> bool:
        """Whether a block can be read."""
        return prefix in self.held and self._there_s[prefix] <= now_s

    def write(self, chain: tuple[int, ...], first: int, now_s: float) -> None:
        """Keep the blocks of a chain from some on, each directly behind the one before it; at no
        time only those that are there already.
        """
        before = chain[first - 1] if first else None
        for prefix in chain[first:]:
            if before is not None and before not in self.held:
                return
            if prefix == before:
                continue
            if prefix in self.held:
                self.held.remove(prefix)
            else:
                if now_s == math.inf:
                    return
                if len(self.held) == self._most:
                    if not self.held or self.held[0] == before:
                        return
                    self.held.pop(0)
                self._writes_until_s = max(self._writes_until_s, now_s) + self._write_s
                self._there_s[prefix] = self._writes_until_s
            place = len(self.held) if before is None else self.held.index(before)
            self.held.insert(place, prefix)
            before = prefix

    def read(self, count: int, now_s: float) -> float:
        """Read some blocks of a request behind those of others. Returns when they have come."""
        self._reads_until_s = max(self._reads_until_s, now_s) + count * self._read_s
        return self._reads_until_s + self._latency_s


class Cache:
    """The blocks of a rank; the lanes of a pipeline share them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._num_fresh = settings.num_blocks
        """Blocks that nobody has had yet, which stand before all others in the line."""
        self._free: dict[int, None] = {}
        """Blocks that were given back, in the order in which they are taken."""
        self.prefixes: dict[int, list[int]] = {}
        """KV blocks of each prefix block that is cached."""
        self.idle: dict[int, None] = {}
        """Cached prefix blocks that no request holds, the least recently used first."""
        self.tiers = [Tier(*numbers) for numbers in settings.tiers]
        self.has_preempted = False
        """Whether a request has lost its blocks while this step was formed."""
        self._holders: dict[int, int] = {}
        self._left_by: dict[int, Request] = {}
        """Whose tokens free blocks still hold, where that request may find them again."""

    @property
    def _num_free(self) -> int:
        return self._num_fresh + len(self._free)

    @property
    def num_available(self) -> int:
        """Blocks that are free, or would be if prefix blocks went."""
        return self._num_free + len(self.idle) * self.settings.prefix_blocks

    @property
    def num_held(self) -> int:
        """Blocks that requests hold."""
        return self.settings.num_blocks - self.num_available

    def find_prefix(self, request: Request) -> list[int]:
        """Leading prefix blocks of a prompt that are cached; its last token is computed anyway."""
        if not self.settings.prefix_tokens:
            return []
        whole = (request.num_input - 1) // self.settings.prefix_tokens
        return list(takewhile(self.prefixes.__contains__, request.prefix[:whole]))

    def count_cached(self, request: Request) -> int:
        """Tokens of the longest prefix of a prompt that is anywhere, or about to be."""
        if not self.settings.prefix_tokens:
            return 0
        whole = (request.num_input - 1) // self.settings.prefix_tokens
        known = {*self.prefixes, *(prefix for tier in self.tiers for prefix in tier.held)}
        found = takewhile(known.__contains__, request.prefix[:whole])
        return len(list(found)) * self.settings.prefix_tokens

    def find_readable(self, request: Request, num_prefixes: int, now_s: float) -> list[Tier]:
        """Where each prefix block behind the first ones is read: in the first tier that has it."""
        if not self.tiers:
            return []
        whole, found = (request.num_input - 1) // self.settings.prefix_tokens, []
        for prefix in request.prefix[num_prefixes:whole]:
            tiers = [tier for tier in self.tiers if tier.has(prefix, now_s)]
            if not tiers:
                break
            found.append(tiers[0])
        return found

    def write(self, request: Request, first: int, end: int, now_s: float) -> None:
        """Keep some prefix blocks of a request in all tiers."""
        for tier in self.tiers if end > first else ():
            tier.write(request.prefix[:end], first, now_s)

    def find_lost(self, request: Request, num_prefixes: int) -> list[int]:
        """Blocks behind its first prefix blocks that a request lost and nobody has taken."""
        skipped = (num_prefixes - request.lost_behind) * self.settings.prefix_blocks
        if skipped < 0:
            return []
        lost = request.lost_blocks[skipped:]
        return list(takewhile(lambda block: self._left_by.get(block) is request, lost))

    def count_in_use(self, prefixes: list[int]) -> int:
        """KV blocks of cached prefix blocks that others hold, so that nothing is taken for them."""
        return sum(len(self.prefixes[prefix]) for prefix in prefixes if prefix not in self.idle)

    def use_again(self, request: Request, prefixes: list[int], lost: list[int]) -> None:
        """Let a request hold what it has found."""
        for prefix in prefixes:
            self.idle.pop(prefix, None)
            self._holders[prefix] += 1
        for block in lost:
            del self._free[block], self._left_by[block]
        request.shared, request.blocks, request.lost_blocks = prefixes, lost, []

    def count_missing(self, request: Request, num_tokens: int) -> int:
        """Blocks that a request lacks to hold so many tokens."""
        shared = len(request.shared) * self.settings.prefix_blocks
        own = len(request.blocks) + len(request.fixed_blocks)
        return max(0, self.settings.blocks_for(num_tokens) - shared - own)

    def grow(self, request: Request, num_tokens: int) -> None:
        """Take the blocks that a request lacks; they are available."""
        taken = self._take(self.count_missing(request, num_tokens))
        fixed = self.settings.fixed_blocks - len(request.fixed_blocks)
        request.fixed_blocks += taken[:fixed]
        request.blocks += taken[fixed:]

    def _take(self, count: int) -> list[int]:
        while self._num_free < count:
            self._evict()
        fresh = min(count, self._num_fresh)
        taken = list(range(self._num_fresh - fresh, self._num_fresh))
        self._num_fresh -= fresh
        for block in list(islice(self._free, count - fresh)):
            del self._free[block]
            self._left_by.pop(block, None)
            taken.append(block)
        return taken

    def _evict(self) -> None:
        """Let the prefix block go that nobody has held for longest."""
        prefix = next(iter(self.idle))
        del self.idle[prefix], self._holders[prefix]
        self._free |= dict.fromkeys(self.prefixes.pop(prefix))

    def share_prompt(self, request: Request, num_tokens: int, now_s: float) -> None:
        """Cache the whole prefix blocks among the first tokens of a prompt, which others find from
        the step on that computes them. Behind one that somebody else computed meanwhile a request
        keeps blocks of its own.
        """
        if not self.settings.prefix_tokens:
            return
        whole = min(request.num_input, num_tokens) // self.settings.prefix_tokens
        first = len(request.shared)
        for prefix in request.prefix[first:whole]:
            if prefix in self.prefixes:
                break
            size = self.settings.prefix_blocks
            self.prefixes[prefix], request.blocks = request.blocks[:size], request.blocks[size:]
            self._holders[prefix] = 1
            request.shared.append(prefix)
        self.write(request, first, len(request.shared), now_s)

    def release(self, request: Request) -> None:
        """Take back all that a request holds."""
        own = [*reversed(request.fixed_blocks), *reversed(request.blocks)]
        self._free |= dict.fromkeys(own)
        for prefix in reversed(request.shared):
            self._holders[prefix] -= 1
            if not self._holders[prefix]:
                self.idle[prefix] = None
        request.blocks, request.fixed_blocks, request.shared = [], [], []

    def preempt(self, request: Request) -> None:
        """Take back all that a request holds, which finds its full blocks again while they last."""
        if self.settings.finds_lost:
            request.lost_behind = len(request.shared)
            behind = request.lost_behind * self.settings.prefix_blocks
            full = max(0, request.computed // self.settings.block_tokens - behind)
            request.lost_blocks = request.blocks[:full]
            self._left_by |= dict.fromkeys(request.lost_blocks, request)
        self.release(request)
        self.has_preempted = True
