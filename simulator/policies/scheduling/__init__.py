"""Scheduling of steps. A policy states its rules as numbers, which the engine's one compiled loop
follows; one policy in a file.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal, NamedTuple, Protocol, get_args

from simulator.base.frozen import Frozen
from simulator.base.quantities import (
    Ratio,
    Sequences,
    StepCount,
    Steps,
    StepsAhead,
    TokenBudget,
    value_range,
)

RankChoice = Literal["fewest", "waiting_more", "waiting_full", "in_turn", "prompt_tokens"]
RANK_CHOICES: tuple[RankChoice, ...] = get_args(RankChoice)
"""Ways to choose a request's data-parallel rank: the one with the fewest requests; those that wait
counted four times; those that wait counted up to four times as the cache fills from half on, equal
ranks in turn; in turn; fewest prompt tokens, for the longest prompt of those that have come first,
of ranks that are not above their share of requests."""


class Rules(NamedTuple):
    """Rules of the batching loop, for each attention data-parallel rank."""

    token_budget: TokenBudget
    """Most tokens computed in one step."""
    max_sequences: Sequences
    """Most requests that may hold KV blocks at once; of all batches that a pipeline has in flight
    together."""
    mixes_phases: bool
    """Whether prompt chunks and decodes share a step; if not, prompts go first and decodes wait."""
    splits_prompts: bool
    """Whether a prompt may be computed over several steps; if not, a prompt larger than the budget
    has a step alone."""
    refuses_long: bool = False
    """Whether a prompt larger than the budget is refused when it arrives."""
    reserves_output: bool = False
    """Whether a request is admitted only where its whole output has room in the cache too, so that
    none is ever preempted."""
    checks_known: bool = False
    """Whether a request is admitted only where all tokens that it has so far have room, though it
    takes the blocks of its first chunk only."""
    watermark: Ratio = 0.0
    """Share of the KV blocks that admission leaves free while other requests run."""
    finds_full: bool = False
    """Whether all full blocks are cached, given prefix caching: those of outputs and of prompts
    that nobody shares, too, which a preempted request finds again, and which push prefixes out."""
    frees_partial_first: bool = False
    """Whether other blocks are taken again before all full ones, and not as they became free."""
    output_share: Ratio = 0.0
    """Share of the outputs of running requests that admission assumes at first, besides the whole
    output of the arriving request; the requests with the fewest output tokens are then preempted
    first. 0 = outputs are not assumed, and the latest admitted is preempted."""
    ignores_share: bool = False
    """Whether all of these outputs are assumed, whatever the share is: requests that end with
    ``max_tokens`` only."""
    least_output_share: Ratio = 0.0
    """Lower bound of that share."""
    output_share_decay: Ratio = 0.0
    """Decrease of that share in every decode step without a lost request."""
    retract_steps: StepCount = 0
    """Output tokens beyond its present ones that each request counts for when the share is set
    again, after others lost their blocks."""
    steps_ahead: StepsAhead = 0
    """Steps that are formed while another one runs, 0 or 1: from what has come, ended and become
    free until that begins."""
    poll_steps: Steps = 1
    """Steps between two polls of the queue of new requests."""
    balance_steps: StepCount = 0
    """Steps for which decoding ranks hold prompts back until every rank has one, with attention
    data parallelism."""
    wait_steps: StepCount = 0
    """Steps for which prompts are held back beside decodes until they fill the step, without
    attention data parallelism."""
    wait_share: Ratio = 0.0
    """Share of the token budget above which a step is not held back any longer."""
    knows_ends: bool = True
    """Whether a step that is formed ahead leaves out who has the last of its ``max_tokens`` with
    the step in flight; if not, one computes a token too many, and leaves a step later."""
    rank_choice: Annotated[int, value_range(0, len(RANK_CHOICES) - 1)] = 0
    """Way to choose a request's data-parallel rank, by its place in :data:`RANK_CHOICES`."""

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is not refused."""
        return self.token_budget if self.refuses_long else sys.maxsize


class SchedulingPolicy(Protocol):
    """Interface of the files in this folder: a frozen pydantic model whose fields are its
    configuration keys.
    """

    def rules(self) -> Rules:
        """Return the policy as numbers."""
        ...


class Batching(Frozen):
    """Keys of every engine's scheduling."""

    token_budget: TokenBudget = 8192
    """Most tokens of one step of a data-parallel rank (vLLM's ``max_num_batched_tokens``, SGLang's
    ``--chunked-prefill-size``, TensorRT-LLM's ``max_num_tokens``)."""
    max_sequences: Sequences = 256
    """Most requests that run at once on a data-parallel rank (vLLM's ``max_num_seqs``, SGLang's
    ``--max-running-requests``, TensorRT-LLM's ``max_batch_size``)."""
    steps_ahead: StepsAhead = 0
    """Steps that are formed while another one runs (vLLM's ``async_scheduling``, the overlap
    schedulers of SGLang and TensorRT-LLM). Whatever comes, ends or becomes free meanwhile counts
    from one step later on. Pipelines and drafts work without."""
    rank_choice: RankChoice = "fewest"
    """Way to choose a request's data-parallel rank
    (:data:`~simulator.policies.scheduling.RANK_CHOICES`)."""

    def make_rules(self, *, mixes_phases: bool, splits_prompts: bool) -> Rules:
        """Make the rules that follow from these keys; the others are as by default."""
        return Rules(
            self.token_budget,
            self.max_sequences,
            mixes_phases=mixes_phases,
            splits_prompts=splits_prompts,
            steps_ahead=self.steps_ahead,
            rank_choice=RANK_CHOICES.index(self.rank_choice),
        )
