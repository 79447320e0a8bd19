"""What batches on its own: a data-parallel rank, or one lane of it where a pipeline keeps several
batches in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simulator.policies.balancing import Rule
from simulator.policies.order.longest_prefix import LongestPrefix
from simulator.policies.order.priority import Priority
from tests.reference.cache import Cache
from tests.reference.requests import Part, Request
from tests.reference.settings import Settings

_MOST_COUNTED = 4096
"""Output tokens of one request that SGLang counts on at most
(``SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION``)."""


class Rank:
    """Queues, and the step that is being formed."""

    def __init__(self, settings: Settings, cache: Cache, admissions: Iterator[int]) -> None:
        self.settings, self.cache = settings, cache
        self.ready: list[Request] = []
        """Requests whose caches have come: they wait for nothing but tokens and places."""
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        """Requests in order of admission."""
        self.line: list[Request] = []
        """Requests that want KV blocks for caches that are to come."""
        self.reserved: list[Request] = []
        """Requests that have KV blocks for caches that are to come."""
        self.reading: list[Request] = []
        """Requests that have KV blocks, the first of which come from memory below the GPU."""
        self.tokens: dict[Request, int] = {}
        """Tokens of each request in the step."""
        self.budget = 0
        """Tokens that the step may still get."""
        self.is_full = False
        """Whether admission has found no room, and nobody has left since."""
        self.output_share = settings.rules.output_share
        """Part of the outputs of those that decode that SGLang's admission counts on."""
        self.limited_by = "none"
        self._admissions = admissions

    def find_place(self, request: Request) -> tuple[float, float, int] | None:
        """Where a request stands by priority, vLLM's ``(priority, arrival)``, or with ageing by the
        time at which it came and what its priority is worth; ``None`` by the time at which it is
        queued.
        """
        order = self.settings.order
        if isinstance(order, LongestPrefix):
            return request.key, 0.0, request.number
        if not isinstance(order, Priority):
            return None
        if order.ageing_s is None:
            return request.priority, request.joined_s, request.number
        return request.joined_s + request.priority * order.ageing_s, 0.0, request.number

    def queue(self, queue: list[Request], request: Request, place: int | None = None) -> None:
        """Let a request wait, by default behind all others, unless they wait by priority."""
        queue.insert(len(queue) if place is None else place, request)
        if self.find_place(request) is not None:
            queue.sort(key=self.find_place)  # type: ignore[arg-type]

    def rank_waiting(self) -> None:
        """Sort those that wait by the longest prefix that is cached, up to so many (SGLang's
        ``_sort_by_longest_prefix`` and ``_determine_active_policy``).
        """
        order = self.settings.order
        if isinstance(order, LongestPrefix) and 1 < len(self.waiting) <= order.most:
            for request in self.waiting:
                request.key = float(-self.cache.count_cached(request))
            self.waiting.sort(key=lambda request: (request.key, request.number))

    @property
    def unfinished(self) -> list[Request]:
        """All that it has."""
        here = self.ready + self.waiting + self.running
        return here + self.line + self.reserved + self.reading

    def measure_load(self, rule: Rule, request: Request) -> float:
        """The load with a request, of whose prompt only what is not cached is to be computed."""
        new = rule.per_new_token * (request.num_input - self.cache.count_cached(request))
        return measure_requests(rule, self.unfinished) + new

    @property
    def num_queued(self) -> int:
        """Requests that wait to run."""
        return len(self.ready) + len(self.waiting) + len(self.line)

    def give(self, request: Request, num_tokens: int) -> None:
        """Let a step compute so many tokens of a request."""
        self.tokens[request] = num_tokens
        self.budget = max(0, self.budget - num_tokens)

    def start(self, request: Request, num_tokens: int, now_s: float) -> None:
        """A request runs from this step on, what it has found being computed already."""
        request.admission, request.under_way = next(self._admissions), 0
        request.prompt = request.known
        if request.scheduled_s is None:
            request.scheduled_s, request.cached = now_s, request.computed
            if request.generated:  # a token that came with a cache is shown now
                request.first_s = request.latest_s = now_s
        self.running.append(request)
        self.give(request, num_tokens)

    def list_parts(self) -> list[Part]:
        """What the step computes."""
        return [
            Part(
                request.num_input,
                request.counted,
                request.computed,
                self.tokens[request],
            )
            for request in self.running
            if request in self.tokens
        ]

    def count_expected_output(self) -> int:
        """Output tokens that SGLang expects of those that run or have blocks: all that are left of
        requests without any yet, a share of the others'.
        """
        if not self.settings.rules.output_share:
            return 0
        tokens = float(sum(count_output(one) for one in self.reserved + self.reading + self.ready))
        for request in self.running:
            share = self.output_share if request.counted else 1.0
            tokens += count_output(request) * share
        return int(tokens)


def measure_requests(rule: Rule, requests: Sequence[Request]) -> float:
    """Load of unfinished requests, whatever is cached."""
    tokens = sum(request.num_input + request.num_output for request in requests)
    return rule.per_request * len(requests) + rule.per_token * tokens


def count_output(request: Request) -> int:
    """Output tokens of a request that SGLang counts on."""
    return clip(request.left)


def clip(num_output: int) -> int:
    """At most so many as SGLang counts on."""
    return min(num_output, _MOST_COUNTED)
