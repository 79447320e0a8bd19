"""A replica: its ranks form a step together, and end it together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

from simulator.policies.balancing import Rule
from simulator.policies.scheduling import RANK_CHOICES, RankChoice
from simulator.results.tables import ADMISSION_LIMITS
from tests.reference.admission import admit, reserve
from tests.reference.apart import fill_apart
from tests.reference.cache import Cache
from tests.reference.drafts import count_kept
from tests.reference.preemption import preempt_last, retract
from tests.reference.rank import Rank, measure_requests
from tests.reference.requests import Part, Request, Stage, Step
from tests.reference.settings import Settings


class Replica:
    """Ranks with their caches, requests that are about to be queued there, and what has been."""

    def __init__(self, settings: Settings, num_caches: int, num_lanes: int) -> None:
        self.settings = settings
        self.coming: list[Request] = []
        """Were sent here since the last look at new requests."""
        self.rule = Rule()
        """The balancer's, by which ranks are chosen where it sees prefixes."""
        self.is_busy = False
        """Whether a step is under way, or about to be formed."""
        self.num_stops = 0
        """Reasons for which it serves nobody."""
        self.steps: list[Step] = []
        self.gaps_s: list[float] = []
        """Seconds between output tokens."""
        self.formed: list[list[Part]] | None = None
        """What the next step computes, where it is formed while another is under way."""
        self.under_way: list[Request] | None = None
        """Requests that get a token from the step under way, where another is formed meanwhile."""
        self._sizes = num_caches, num_lanes
        self._num_queued = 0
        """Requests that its ranks have got."""
        self.empty()

    def empty(self) -> None:
        """Forget all requests and caches."""
        num_caches, num_lanes = self._sizes
        self.caches = [Cache(self.settings) for _ in range(num_caches)]
        admissions = count()
        self.ranks = [
            Rank(self.settings, cache, admissions)
            for _ in range(num_lanes)
            for cache in self.caches
        ]
        self.coming = []
        self.is_busy = False
        self.formed = self.under_way = None
        self._held_steps = 0

    @property
    def unfinished(self) -> list[Request]:
        """All requests of its ranks."""
        return [request for rank in self.ranks for request in rank.unfinished]

    def measure_load(self, request: Request) -> float:
        """What a balancer compares: of all requests here; or, where it sees prefixes, of the best
        rank for this request, with its part of those that are at no rank yet.
        """
        if not self.rule.per_new_token:
            return measure_requests(self.rule, self.coming + self.unfinished)
        least = min(rank.measure_load(self.rule, request) for rank in self.ranks)
        return least + measure_requests(self.rule, self.coming) / len(self.ranks)

    def queue_new(self) -> None:
        """Look at the requests that have come, every so many steps and whenever nothing else is
        there: each goes to the rank that its engine chooses, or with the least load by the
        balancer.
        """
        if self.unfinished and len(self.steps) % self.settings.rules.poll_steps:
            return
        coming = self.coming
        choice = RANK_CHOICES[self.settings.rules.rank_choice]
        if choice == "prompt_tokens":
            coming.sort(key=lambda request: request.num_input, reverse=True)
        counts = [len(rank.unfinished) for rank in self.ranks]
        most = max(*counts, math.ceil((sum(counts) + len(coming)) / len(counts)))
        for request in coming:
            if request.lost_s is not None:
                continue
            request.rank = self._choose_rank(request, choice, most)
            self._num_queued += 1
            rank = self.ranks[request.rank]
            is_in_line = request.stage is Stage.IN_LINE
            rank.queue(rank.line if is_in_line else rank.waiting, request)
        self.coming = []

    def _choose_rank(self, request: Request, choice: RankChoice, most: int) -> int:
        """Rank of a request: by the balancer where it sees prefixes; as SGLang's data-parallel
        controller, vLLM's client of several engine cores or TensorRT-LLM's executor has it.
        """
        if self.rule.per_new_token:
            loads = [rank.measure_load(self.rule, request) for rank in self.ranks]
            return loads.index(min(loads))
        if choice == "in_turn":
            return self._num_queued % len(self.ranks)
        scores: list[tuple[float, int]] = []
        for number, rank in enumerate(self.ranks):
            running, unfinished = len(rank.running), len(rank.unfinished)
            waiting, tie = unfinished - running, number
            score = {"fewest": unfinished, "waiting_more": 4 * waiting + running}.get(choice, 0.0)
            if choice == "waiting_full":
                score = unfinished + waiting * 6.0 * max(0.0, self._used(rank) - 0.5)
                tie = (number - self._num_queued) % len(self.ranks)
            if choice == "prompt_tokens":
                score = sum(one.num_input for one in rank.unfinished)
                if unfinished >= most:
                    continue
            scores.append((score, tie, number))
        return min(scores)[-1]

    def _used(self, rank: Rank) -> float:
        return 1 - rank.cache.num_available / self.settings.num_blocks

    def form_step(self, now_s: float) -> tuple[list[list[Part]], list[Request]]:
        """Choose what each rank computes, and whom blocks are kept for.

        Raises:
            RuntimeError: if requests wait for blocks that nobody will give back.
        """
        for rank in self.ranks:
            rank.rank_waiting()
        reserved = self._fill(now_s)
        while any(cache.has_preempted for cache in self.caches) and not self._computes:
            if self.under_way is not None:
                break
            reserved += self._fill(now_s)
        if not self._computes and self.under_way is None and not self._may_wait:
            raise RuntimeError("requests wait, but none can run")
        return [rank.list_parts() for rank in self.ranks], reserved

    @property
    def _computes(self) -> bool:
        return any(rank.tokens for rank in self.ranks)

    @property
    def _may_wait(self) -> bool:
        caches_come = any(rank.reserved or rank.reading for rank in self.ranks)
        return self.settings.keeps_caches or caches_come or not self.unfinished

    def _fill(self, now_s: float) -> list[Request]:
        rules, reserved = self.settings.rules, list[Request]()
        holds = self._holds_prompts()
        for cache in self.caches:
            cache.has_preempted = False
        for rank in self.ranks:
            rank.tokens, rank.budget = {}, rules.token_budget
            if self.settings.fills_apart:
                if fill_apart(rank, now_s):
                    self._continue(rank, now_s, prompts=False, decodes=True)
                continue
            if rules.mixes_phases:
                retract(rank)
            self._continue(rank, now_s, prompts=True, decodes=rules.mixes_phases)
            rank.limited_by = "held_back" if holds else "kv_cache"
            if (rank.ready or rank.waiting) and not holds and not rank.cache.has_preempted:
                admit(rank, now_s)
            if not rules.mixes_phases and rank.budget == rules.token_budget:
                retract(rank)
                self._continue(rank, now_s, prompts=False, decodes=True)
            reserved += reserve(rank, now_s)
        return reserved

    def _continue(self, rank: Rank, now_s: float, *, prompts: bool, decodes: bool) -> None:
        """Give those that run their tokens in order of admission; when blocks run out, the last
        loses its own, and its tokens go to others.
        """
        peers = [one for one in self.ranks if one.cache is rank.cache]
        for request in list(rank.running):
            if not rank.budget:
                return
            if request not in rank.running or not (decodes if request.decodes else prompts):
                continue
            if not request.may_go_on:
                continue
            draft = len(self.settings.accepted) if request.decodes else 0
            new = min(request.known - request.computed + draft, rank.budget)
            if not self._make_room(peers, request, request.computed + new):
                return
            rank.cache.grow(request, request.computed + new)
            rank.cache.share_prompt(request, request.computed + new, now_s)
            rank.give(request, new)

    @staticmethod
    def _make_room(peers: Sequence[Rank], request: Request, num_tokens: int) -> bool:
        """Whether there is room for a request to grow, others having lost their blocks for it."""
        cache = peers[0].cache
        while cache.count_missing(request, num_tokens) > cache.num_available:
            if preempt_last(peers) is request:
                return False
        return True

    def _holds_prompts(self) -> bool:
        """Whether prompts wait, though not for ever, so that ranks compute them in the same step,
        or the only rank more of them (TensorRT-LLM's ``attention_dp_config`` and
        ``batch_wait_timeout_iters``).
        """
        rules = self.settings.rules
        if not rules.balance_steps and not rules.wait_steps:
            return False
        waits = self._waits_for_ranks() if rules.balance_steps else self._waits_for_more()
        if waits is None:
            return False
        most = rules.balance_steps or rules.wait_steps
        holds = waits and self._held_steps < most
        self._held_steps = self._held_steps + 1 if holds else 0
        return holds

    def _waits_for_ranks(self) -> bool:
        """Whether some ranks have prompts and others none, while any runs."""
        have = [bool(rank.waiting or rank.ready) for rank in self.ranks]
        return any(have) and not all(have) and any(rank.running for rank in self.ranks)

    def _waits_for_more(self) -> bool | None:
        """Whether prompts and decodes do not fill a step; ``None`` without prompts."""
        [rank] = self.ranks
        if not rank.waiting:
            return None
        tokens = len(rank.running)
        for request in rank.waiting:
            if tokens + request.num_input > self.settings.rules.token_budget:
                break
            tokens += request.num_input
        return bool(rank.running) and tokens < self.settings.wait_tokens

    def record_step(self, start_s: float, duration_s: float) -> None:
        """Put down what the step that has been formed holds."""
        given = [found for rank in self.ranks for found in rank.tokens.items()]
        decodes = [(request, new) for request, new in given if request.decodes]
        fullest = max(self.ranks, key=lambda rank: rank.num_queued)
        self.steps.append(
            Step(
                start_s,
                duration_s,
                prefill_tokens=sum(new for _, new in given) - sum(new for _, new in decodes),
                decodes=len(decodes),
                decode_tokens=sum(
                    count_kept(self.settings, *found) for found in decodes if found[0].left
                ),
                running=sum(len(rank.running) for rank in self.ranks),
                waiting=sum(rank.num_queued for rank in self.ranks),
                kv_used=self._measure_use(),
                limited_by=fullest.limited_by if fullest.num_queued else ADMISSION_LIMITS[0],
            )
        )

    def _measure_use(self) -> float:
        used = 0.0
        for cache in self.caches:
            used += cache.num_held / self.settings.num_blocks / len(self.caches)
        return used

    def begin_step(self) -> None:
        """Count on the tokens of a step that begins, before another one is formed."""
        self.under_way = []
        for rank in self.ranks:
            for request in rank.running:
                given = rank.tokens.get(request, 0)
                kept = 1
                if given and request.decodes:
                    given = kept = count_kept(self.settings, request, given)
                request.under_way = given
                request.computed += given
                if given and request.computed == request.known + kept - 1:
                    request.promised = kept
                    self.under_way.append(request)

    def _end_step_under_way(self, now_s: float) -> list[Request]:
        assert self.under_way is not None
        finished = []
        for request in self.under_way:
            if not request.promised:
                continue
            rank = self.ranks[request.rank]
            request.generated, request.promised = request.generated + request.promised, 0
            self._show_token(request, now_s)
            if not request.left:
                finished.append(request)
                self._take_leave(rank, request)
        self.under_way = None
        return finished

    def _take_leave(self, rank: Rank, request: Request) -> None:
        """Let a request go that has finished."""
        rank.cache.write(request, 0, len(request.prefix), math.inf)
        for own in (rank.running, rank.waiting):  # or neither, if it has been preempted since
            if request in own:
                own.remove(request)
        rank.is_full = False
        if not self.settings.keeps_caches:
            rank.cache.release(request)

    def cut_step(self) -> None:
        """Take the tokens back that a step which is cut off was to bring."""
        for request in self.under_way or []:
            rank = self.ranks[request.rank]
            if not request.may_go_on and request not in rank.running:
                rank.waiting.insert(0, request)
            request.promised = 0
        self.formed = self.under_way = None

    def end_step(self, now_s: float) -> list[Request]:
        """Count the tokens of the step. Returns the requests that finish with it."""
        self.num_streams = sum(len(rank.running) for rank in self.ranks)
        if self.under_way is not None:
            found = self._end_step_under_way(now_s)
            for rank in self.ranks:
                self._forget_share(rank)
            return found
        finished = []
        for rank in self.ranks:
            for request in list(rank.running):
                if self._advance(request, rank.tokens.get(request, 0), now_s):
                    finished.append(request)
                    self._take_leave(rank, request)
            self._forget_share(rank)
        return finished

    def _forget_share(self, rank: Rank) -> None:
        if not rank.running and not rank.waiting and not rank.ready:
            rank.output_share = self.settings.rules.output_share

    def _advance(self, request: Request, num_tokens: int, now_s: float) -> bool:
        """Let a request have had its tokens computed. Returns whether it finishes."""
        if request.decodes and num_tokens:
            num_tokens = count_kept(self.settings, request, num_tokens)
            request.generated += num_tokens - 1
        request.computed += num_tokens
        if not num_tokens or request.computed < request.known:
            return False
        request.generated += 1
        self._show_token(request, now_s)
        return not request.left

    def _show_token(self, request: Request, now_s: float) -> None:
        if request.latest_s is None:
            request.first_s, request.streams = now_s, self.num_streams
        else:
            self.gaps_s.append(now_s - request.latest_s)
        request.latest_s = now_s
        if not request.left:
            request.finish_s = now_s
