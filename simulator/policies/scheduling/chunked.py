"""Continuous batching with chunked prefill: decodes first, the rest of the budget for prompt chunks
(vLLM V1; Sarathi-Serve).
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Ratio, Sequences, StepsAhead, TokenBudget
from simulator.policies.scheduling import RANK_CHOICES, RankChoice, Rules


class Chunked(Frozen):
    """Every step serves all running requests and fills up with waiting prompts, cut to fit
    (arXiv:2403.02310).
    """

    token_budget: TokenBudget = 8192
    """Most tokens of one step of a data-parallel rank (vLLM's ``max_num_batched_tokens``)."""
    max_sequences: Sequences = 256
    """Most requests that run at once on a data-parallel rank (vLLM's ``max_num_seqs``)."""

    reserve_full_isl: bool = True
    """Whether a request is admitted only where its whole prompt, and its output so far after a
    preemption, has room in the KV cache (vLLM's ``scheduler_reserve_full_isl``, since 0.19,
    #37307). ``false`` = where its first chunk has, as before."""
    watermark: Ratio = 0.0
    """Share of the KV cache that admission leaves free while others run (vLLM's ``watermark``,
    since 0.23, #44594)."""
    frees_partial_first: bool = True
    """Whether blocks that are not full are taken again before those that are (vLLM's
    ``free_blocks``, since #42656). ``false`` = all as they became free, as before."""
    steps_ahead: StepsAhead = 0
    """Steps that are formed while another one runs (vLLM's ``async_scheduling``).
    Whatever comes, ends or becomes free meanwhile counts from one step later on. Pipelines and
    drafts work without."""
    rank_choice: RankChoice = "fewest"
    """Way to choose a request's data-parallel rank
    (:data:`~simulator.policies.scheduling.RANK_CHOICES`)."""

    def rules(self) -> Rules:
        return Rules(
            self.token_budget,
            self.max_sequences,
            mixes_phases=True,
            splits_prompts=True,
            checks_known=self.reserve_full_isl,
            watermark=self.watermark,
            finds_full=True,
            frees_partial_first=self.frees_partial_first,
            steps_ahead=self.steps_ahead,
            rank_choice=RANK_CHOICES.index(self.rank_choice),
        )
