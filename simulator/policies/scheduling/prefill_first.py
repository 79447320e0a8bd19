"""Prompts first, in steps of their own, while decodes wait (SGLang; Orca-style batching as in vLLM
V0).
"""

from __future__ import annotations

from simulator.base.quantities import Factor, Ratio, Steps
from simulator.policies.scheduling import Batching, Rules

_OUTPUT_SHARE, _LEAST_OF_SHARE, _DECAY_STEPS, _RETRACT_STEPS = 0.7, 0.14, 600, 20
"""Defaults of SGLang's ``SGLANG_INIT_NEW_TOKEN_RATIO``, ``_MIN_NEW_TOKEN_RATIO_FACTOR``,
``_NEW_TOKEN_RATIO_DECAY_STEPS`` and ``SGLANG_RETRACT_DECODE_STEPS`` (``environ.py``, 0.5.20)."""


class PrefillFirst(Batching):
    """Best first-token latency, at the price of stalls between the tokens of running requests
    (arXiv:2309.06180).
    """

    splits_prompts: bool = False
    """Whether prompts are cut to fill the budget (SGLang's ``chunked_prefill_size``)."""
    poll_steps: Steps = 1
    """Steps from one look at new requests to the next (SGLang's ``--scheduler-recv-interval``)."""

    counts_output: bool = True
    """Whether a request is admitted only where its prompt, its output and a share of the outputs of
    those that run have room (SGLang's ``PrefillAdder``). ``false`` = where its first chunk has."""
    ignore_eos: bool = False
    """Whether requests end with ``max_tokens`` only, as benchmarks send them: the outputs of those
    that run count in full then."""
    conservativeness: Factor = 1.0
    """Factor on the share of the outputs of running requests that admission reckons with (SGLang's
    ``--schedule-conservativeness``): 0.7 times that at first, falling to 0.14 of it over 600 decode
    steps without a retraction."""
    watermark: Ratio = 0.0
    """Share of the KV cache that admission leaves free while others run (vLLM V0: 0.01)."""

    knows_ends: bool = True
    """Whether a step that is formed ahead leaves out who ends with the step in flight, by its
    ``max_tokens`` (SGLang from 0.5.22 on)."""

    def rules(self) -> Rules:
        share = min(1.0, _OUTPUT_SHARE * self.conservativeness) if self.counts_output else 0.0
        least = min(1.0, _LEAST_OF_SHARE * share)
        rules = self.make_rules(mixes_phases=False, splits_prompts=self.splits_prompts)
        return rules._replace(
            watermark=self.watermark,
            output_share=share,
            ignores_share=self.ignore_eos,
            finds_full=self.counts_output,
            frees_partial_first=self.counts_output,
            least_output_share=least,
            output_share_decay=(share - least) / _DECAY_STEPS,
            retract_steps=_RETRACT_STEPS,
            poll_steps=self.poll_steps,
            knows_ends=self.knows_ends,
        )
