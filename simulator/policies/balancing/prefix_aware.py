"""Balancing by cached prefixes against load, as the router of NVIDIA Dynamo weighs them: prompt
tokens that would have to be computed, plus the tokens of unfinished requests (its documentation,
"KV cache routing": overlap weight x prefill blocks + decode blocks, the least wins).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from simulator.base.frozen import Frozen
from simulator.base.quantities import Factor
from simulator.policies.balancing import Rule


class PrefixAware(Frozen):
    """Go where most of the prompt is cached, unless that rank has too much to do; ties go to the
    first.
    """

    needs_load: ClassVar[bool] = True

    overlap_weight: Factor = 1.0
    """Load of a prompt token that is not cached, in tokens of unfinished requests: more keeps
    requests with the same prefix together, less spreads them."""

    def prepare(self, num_replicas: int, rng: np.random.Generator) -> Rule:
        return Rule(per_token=1, per_new_token=self.overlap_weight)
