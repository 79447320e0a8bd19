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
