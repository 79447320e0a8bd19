"""Whole prompts first, in steps of their own, while decodes wait (Orca-style batching as in vLLM
V0).
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Sequences, Steps, TokenBudget
from simulator.policies.scheduling import Rules


class PrefillFirst(Frozen):
    """Best first-token latency, at the price of stalls between the tokens of running requests
    (arXiv:2309.06180).
    """

    token_budget: TokenBudget = 8192
    max_sequences: Sequences = 256
    splits_prompts: bool = False
    """Whether prompts are cut to fill the budget (SGLang's ``chunked_prefill_size``)."""
    poll_steps: Steps = 1
    """Steps from one look at new requests to the next (SGLang's ``--scheduler-recv-interval``)."""

    def rules(self) -> Rules:
        return Rules(
            self.token_budget,
            self.max_sequences,
            mixes_phases=False,
            splits_prompts=self.splits_prompts,
            poll_steps=self.poll_steps,
        )
