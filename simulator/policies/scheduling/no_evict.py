"""In-flight batching that never evicts: room for the whole output is reserved at admission
(TensorRT-LLM's GUARANTEED_NO_EVICT).
"""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Ratio, Sequences, StepCount, StepsAhead, TokenBudget
from simulator.policies.scheduling import RANK_CHOICES, RankChoice, Rules


class NoEvict(Frozen):
    """Decodes first, then whole prompts while tokens, places and cache last; fewer requests run
    than pages would hold.
    """

    token_budget: TokenBudget = 8192
    """Most tokens of one step of a data-parallel rank (TensorRT-LLM's ``max_num_tokens``)."""
    max_sequences: Sequences = 2048
    """Most requests that run at once on a data-parallel rank (TensorRT-LLM's
    ``max_batch_size``)."""
    chunked_prompts: bool = False
    """Whether prompts are cut to fit the budget (chunked context); if not, longer ones are
    refused."""
    balance_steps: StepCount = 0
    """Steps for which prompts wait until every rank has one, with attention data parallelism
    (``attention_dp_config``'s ``timeout_iters``, with ``enable_balance``)."""
    wait_steps: StepCount = 0
    """Steps for which prompts wait for more of them while others decode, without attention data
    parallelism (``batch_wait_timeout_iters``)."""
    wait_share: Ratio = 0.0
    """Share of the budget from which on prompts wait no longer
    (``batch_wait_max_tokens_ratio``)."""

    steps_ahead: StepsAhead = 0
    """Steps that are formed while another one runs (TensorRT-LLM's overlap scheduler).
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
            splits_prompts=self.chunked_prompts,
            refuses_long=not self.chunked_prompts,
            reserves_output=True,
            balance_steps=self.balance_steps,
            wait_steps=self.wait_steps,
            wait_share=self.wait_share,
            steps_ahead=self.steps_ahead,
            rank_choice=RANK_CHOICES.index(self.rank_choice),
        )
