"""A request, and how far one pool of replicas is with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Stage(Enum):
    """Where a request of a decode pool stands."""

    HERE = "nothing is to come for it"
    IN_LINE = "it is to get KV blocks for a cache that comes"
    RESERVED = "it has blocks for a cache that comes"
    READ = "its first blocks come from memory below the GPU"


@dataclass(eq=False)
class Request:
    """What is asked, and what has come of it; times are in seconds, ``None`` until they are."""

    number: int
    num_input: int
    num_output: int
    most: int
    """Output tokens that it may have, as far as its engine knows."""
    priority: float = 0.0
    """The least is served first, where requests wait by priority."""
    prefix: tuple[int, ...] = ()
    """Prefix blocks of its prompt: equal numbers hold equal tokens behind an equal beginning."""
    computed: int = 0
    """Tokens whose keys and values are in the cache."""
    generated: int = 0
    """Output tokens so far."""
    promised: int = 0
    """Output tokens of the step that is under way, where another is formed meanwhile."""
    prompt: int = 0
    """Tokens that were known when it was last admitted."""
    under_way: int = 0
    """Tokens that this step computes."""
    transferred: int = 0
    """Tokens whose keys and values come from another pool."""
    stage: Stage = Stage.HERE
    replica: int | None = None
    """Where it was sent last, by number in its pool."""
    rank: int = 0
    admission: int = 0
    """How many admissions came before its latest one."""
    shared: list[int] = field(default_factory=list)
    """Leading prefix blocks that it holds together with others."""
    blocks: list[int] = field(default_factory=list)
    """KV blocks of its own, of the tokens behind those in order."""
    fixed_blocks: list[int] = field(default_factory=list)
    """KV blocks of its own that hold windows and states."""
    lost_blocks: list[int] = field(default_factory=list)
    """Full KV blocks that it had when it was preempted."""
    lost_behind: int = 0
    """Prefix blocks that stood before ``lost_blocks``."""
    cached: int = 0
    """Prompt tokens that were there when it was first admitted."""
    preemptions: int = 0
    streams: int = 0
    """Requests that ran on its replica when its first token came."""
    retries: int = 0
    key: float = 0.0
    """Where it stands among those that wait, the least first, where that changes meanwhile."""
    joined_s: float = 0.0
    """When it was sent to its replica."""
    known_end: float = math.inf
    """Output tokens with which it ends as its engine knows before it does."""
    arrival_s: float | None = None
    """When it came to the pool's replicas; in a decode pool, when its cache did."""
    scheduled_s: float | None = None
    first_s: float | None = None
    latest_s: float | None = None
    finish_s: float | None = None
    lost_s: float | None = None
    is_refused: bool = False
    reserved_s: float | None = None
    read_s: float | None = None
    """When its first blocks have come from memory below the GPU."""
    read: int = 0
    """Prompt tokens of these, at its first admission."""

    @property
    def known(self) -> int:
        """Tokens of the prompt and of the output so far, or promised."""
        return self.num_input + self.counted

    @property
    def counted(self) -> int:
        """Output tokens so far, or promised."""
        return self.generated + self.promised

    @property
    def left(self) -> int:
        """Output tokens that are still to come."""
        return self.num_output - self.counted

    @property
    def may_go_on(self) -> float:
        """Output tokens that its engine has to reckon with, where any; nobody knows how many
        tokens of a draft under way are kept.
        """
        return self.promised > 1 or self.known_end - self.counted

    @property
    def decodes(self) -> bool:
        """Whether its newest output token alone is not computed."""
        return self.counted > 0 and self.computed + 1 == self.known

    @property
    def waits_for_token(self) -> bool:
        """Whether it decodes in the step under way."""
        is_decode = self.under_way == 1 or self.promised > 1
        return self.promised > 0 and self.generated > 0 and is_decode

    def forget_cache(self) -> None:
        """The caches of its replica are gone."""
        self.computed = self.transferred = self.lost_behind = 0
        self.read *= self.scheduled_s is not None
        self.shared, self.blocks, self.fixed_blocks, self.lost_blocks = [], [], [], []


class Part(NamedTuple):
    """What a step computes of one request."""

    num_input: int
    generated: int
    computed: int
    """Tokens before those of the step."""
    num_tokens: int


@dataclass
class Step:
    """One step of one replica."""

    start_s: float
    duration_s: float
    prefill_tokens: int
    decodes: int
    """Sequences that decode."""
    decode_tokens: int
    """Output tokens that they get."""
    running: int
    waiting: int
    kv_used: float
    """Share of the KV blocks that requests hold, mean over data-parallel ranks."""
    limited_by: str
    """What kept the longest queue waiting."""
