"""Continuous batching with chunked prefill: decodes first, the rest of the budget for prompt chunks
(vLLM V1; Sarathi-Serve).
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Sequences, TokenBudget
from simulator.policies.scheduling import Rules


class Chunked(Frozen):
    """Every step serves all running requests and fills up with waiting prompts, cut to fit
    (arXiv:2403.02310).
    """

    token_budget: TokenBudget = 8192
    """vLLM's ``max_num_batched_tokens``, per data-parallel rank."""
    max_sequences: Sequences = 256
    """vLLM's ``max_num_seqs``, per data-parallel rank."""

    def rules(self) -> Rules:
        return Rules(self.token_budget, self.max_sequences, mixes_phases=True, splits_prompts=True)
