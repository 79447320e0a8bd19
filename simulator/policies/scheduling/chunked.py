"""Continuous batching with chunked prefill: decodes first, the rest of the budget for prompt chunks
(vLLM V1; Sarathi-Serve).
"""

from __future__ import annotations

from simulator.base.quantities import Ratio
from simulator.policies.scheduling import Batching, Rules


class Chunked(Batching):
    """Every step serves all running requests and fills up with waiting prompts, cut to fit
    (arXiv:2403.02310).
    """

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

    def rules(self) -> Rules:
        return self.make_rules(mixes_phases=True, splits_prompts=True)._replace(
            checks_known=self.reserve_full_isl,
            watermark=self.watermark,
            finds_full=True,
            frees_partial_first=self.frees_partial_first,
        )
