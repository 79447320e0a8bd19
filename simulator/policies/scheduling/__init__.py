"""How a step is filled. A policy says it as numbers, which the engine's one compiled loop follows.
One policy a file.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Rules(NamedTuple):
    """What the batching loop needs to know, per attention data-parallel rank."""

    token_budget: int
    """Tokens computed in one step at most."""
    max_sequences: int
    """Requests that may hold KV blocks at once; of all batches that a pipeline has in flight
    together."""
    mixes_phases: bool
    """Whether prompt chunks and decodes share a step; if not, prompts go first and decodes wait."""
    splits_prompts: bool
    """Whether a prompt may be computed over several steps; if not, a prompt larger than the budget
    has a step alone."""
    reserves_output: bool = False
    """Whether a request is admitted only where its whole output has room in the cache too, so that
    none is ever preempted."""
    checks_known: bool = False
    """Whether a request is admitted only where all tokens that it has so far have room, though it
    takes the blocks of its first chunk only."""
    watermark: float = 0.0
    """Share of the KV blocks that admission leaves free while other requests run."""
    finds_preempted: bool = False
    """Whether a request that lost its blocks finds those again that nobody has taken, given prefix
    caching."""
    output_share: float = 0.0
    """Share of the outputs of running requests that admission counts on at first, besides the whole
    output of the one that comes; the requests with the fewest output tokens then lose their blocks
    first. 0 = outputs are not counted on, and the latest admitted loses them."""
    least_output_share: float = 0.0
    """Below which that share does not fall."""
    output_share_decay: float = 0.0
    """What every decode step without a lost request takes off it."""
    retract_steps: int = 0
    """Output tokens beyond those it has that each request counts for when the share is set anew,
    after others lost their blocks."""
    poll_steps: int = 1
    """Steps from one look at the queue of new requests to the next."""
    balance_steps: int = 0
    """With attention data parallelism: steps for which ranks that decode hold prompts back until
    every rank has one."""
    wait_steps: int = 0
    """Without it: steps for which prompts are held back beside decodes, until they fill the
    step."""
    wait_share: float = 0.0
    """Of the budget: a step that is as full as that is not held back any longer."""


class SchedulingPolicy(Protocol):
    """A file in this folder: a frozen pydantic model whose fields are its configuration keys."""

    def rules(self) -> Rules:
        """The policy as numbers."""
        ...
