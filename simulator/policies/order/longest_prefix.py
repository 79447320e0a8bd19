"""Longest cached prefix first, as SGLang's ``--schedule-policy lpm`` has it
(``sglang/srt/managers/schedule_policy.py``, release 0.5.23): whoever has most of its prompt in the
cache is next, of equals the first to come.
"""

from __future__ import annotations

import numpy as np

from simulator.base.arrays import Floats
from simulator.base.frozen import Frozen
from simulator.base.quantities import Sequences
from simulator.policies.order import Keys, Queued, Waiting


class LongestPrefix(Frozen):
    """Prompts that have little in the cache may wait without end while others come."""

    most: Sequences = 128
    """Waiting requests of a rank above which they stay in the order in which they stand, for the
    sake of the time that looking them up takes (``WAITING_QUEUE_PREFIX_MATCH_MAX``)."""

    def keys(self, requests: Queued) -> Keys:
        return Keys(np.zeros(len(requests.num_input)))

    def rank(self, waiting: Waiting) -> Floats:
        if len(waiting.key) > self.most:
            return waiting.key
        return -waiting.cached_tokens.astype(np.float64)
