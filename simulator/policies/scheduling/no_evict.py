"""In-flight batching that never evicts: room for the whole output is reserved at admission
(TensorRT-LLM's GUARANTEED_NO_EVICT).
"""

from __future__ import annotations

from simulator.base.quantities import Ratio, Sequences, StepCount
from simulator.policies.scheduling import Batching, Rules


class NoEvict(Batching):
    """Decodes first, then whole prompts while tokens, places and cache last; fewer requests run
    than pages would hold.
    """

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

    def rules(self) -> Rules:
        rules = self.make_rules(mixes_phases=True, splits_prompts=self.chunked_prompts)
        return rules._replace(
            refuses_long=not self.chunked_prompts,
            reserves_output=True,
            balance_steps=self.balance_steps,
            wait_steps=self.wait_steps,
            wait_share=self.wait_share,
        )
