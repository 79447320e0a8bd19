"""Steps of prompts alone and of decodes alone, as SGLang 0.5.23 fills them: ``PrefillAdder`` in its
``schedule_policy.py``, ``get_next_batch_to_run`` and ``update_running_batch`` in ``scheduler.py``.
"""

from __future__ import annotations

from tests.reference.preemption import count_next_blocks, retract
from tests.reference.rank import Rank, clip
from tests.reference.requests import Request


def fill_apart(rank: Rank, now_s: float) -> bool:
    """Give prompts their tokens. Returns whether decodes may have theirs instead."""
    if _Adder(rank).add_all(now_s):
        return False
    go_on = [request for request in rank.running if request.may_go_on]
    if not go_on:
        rank.is_full = False
        return False
    if len(go_on) < len(rank.running) and count_next_blocks(rank) > rank.cache.num_available:
        rank.is_full = False  # those that end give their blocks back
        return False
    retract(rank)
    rank.budget = max(rank.budget, len(rank.running))
    return True


class _Adder:
    """Tokens that are left for prompts, of the step and of the cache."""

    def __init__(self, rank: Rank) -> None:
        self._rank, self._cache = rank, rank.cache
        self._page = rank.settings.block_tokens
        chunks = [one for one in rank.running if one.computed < one.prompt]
        self._chunk = chunks[0] if chunks else None
        self._decoding = [one for one in rank.running if one is not self._chunk]
        share = 1.0 if rank.settings.rules.ignores_share else rank.output_share
        assumed = 0.0
        for request in self._decoding:
            assumed += clip(request.most - request.generated) * share
        self._room = rank.cache.num_available * self._page - assumed

    def add_all(self, now_s: float) -> bool:
        """Add prompts while there is room. Returns whether there are any."""
        rank = self._rank
        if self._chunk or not self._decoding:
            rank.is_full = False
        rank.limited_by = "kv_cache"
        if not self._chunk and (rank.is_full or not rank.waiting):
            return False
        if self._chunk and not self._go_on(self._chunk, now_s):
            return False
        while rank.waiting:
            limit = self._find_limit(rank.waiting[0], now_s)
            if limit is not None:
                rank.limited_by = limit
                break
        if not self._decoding:
            rank.is_full = False
        return bool(rank.tokens)

    def _go_on(self, request: Request, now_s: float) -> bool:
        """Compute more of a prompt that has begun. Returns whether there are blocks for it."""
        left = request.known - request.computed
        most = min(self._rank.budget, int(self._room))
        new = min(left, most if most > 0 else self._rank.budget)
        if self._cache.count_missing(request, request.computed + new) > self._cache.num_available:
            return False
        self._cache.grow(request, request.computed + new)
        self._cache.share_prompt(request, request.computed + new, now_s)
        self._rank.tokens[request] = new
        self._reserve(new, clip(request.most) if new == left else 0)
        return True

    def _find_limit(self, request: Request, now_s: float) -> str | None:
        """Start the first of those that wait, or say what is missing."""
        rank, cache, settings = self._rank, self._cache, self._rank.settings
        if self._room > 0 and rank.budget <= 0:
            return "token_budget"
        if len(rank.running) >= settings.rules.max_sequences:
            rank.is_full = True
            return "max_sequences"
        prefixes = cache.find_prefix(request)
        lost = cache.find_lost(request, len(prefixes))
        found = len(prefixes) * settings.prefix_tokens + len(lost) * self._page
        new = request.known - found
        in_line = len(prefixes) * settings.prefix_blocks - cache.count_in_use(prefixes) + len(lost)
        locked = (in_line + settings.fixed_blocks) * self._page
        wanted = new + clip(request.most - request.generated) + self._page
        asked = settings.blocks_for(new) + in_line
        is_alone = not rank.running and asked <= cache.num_available
        if wanted >= self._room - locked and not is_alone:  # else its limit is cut to what fits
            rank.is_full = bool(rank.tokens or self._decoding)
            return "kv_cache"
        output = clip(request.most)
        if settings.rules.splits_prompts and self._round(new) > rank.budget:
            whole = found + rank.budget // self._page * self._page
            new, output = whole // self._page * self._page - found, 0
        if new <= 0 or (self._round(new) > rank.budget and rank.tokens):
            return "token_budget"
        cache.use_again(request, prefixes, lost)
        cache.grow(request, found + new)
        rank.waiting.remove(request)
        request.computed = found
        cache.share_prompt(request, found + new, now_s)
        budget = rank.budget
        rank.start(request, new, now_s)
        rank.budget = budget
        self._room -= locked
        self._reserve(new, output)
        if self._room <= 0:
            rank.is_full = True
            return "kv_cache"
        return None

    def _reserve(self, num_tokens: int, output: int) -> None:
        """Count on tokens of a prompt, a page more, and its output."""
        self._rank.budget -= self._round(num_tokens)
        self._room -= self._round(num_tokens) + self._page + output

    def _round(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page) * self._page
