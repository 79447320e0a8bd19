"""Order by priority: a number of each request, the least first, as vLLM's ``--scheduling-policy
priority`` has it (``vllm/v1/core/sched/request_queue.py``: by priority, then arrival). Where KV
blocks run out, the last request in this order is preempted.
"""

from __future__ import annotations

import numpy as np

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import Duration
from simulator.policies.order import Keys, Queued

_STRICT_S = 1e7
"""Seconds that a class counts for without ageing: more than any run takes, and so few that times
keep a tenth of a microsecond beside a hundred classes."""


class Priority(Frozen):
    """Ageing keeps requests of little priority from waiting without end."""

    ageing_s: Duration | None = None
    """Seconds of waiting that make up for a priority that is greater by one; absent = a request
    never waits for one of a greater number."""

    def keys(self, requests: Queued) -> Keys:
        priority_N = requests.attributes.get("priority")
        if priority_N is None:
            raise UserError(
                "'priority' needs a priority of each request: add priorities = "
                "[0.2, 0.8] to [workload], or serve a CSV or Parquet table of requests with a "
                "column 'priority' of numbers"
            )
        if priority_N.dtype == object:
            raise UserError("the trace's column 'priority' holds texts, and must hold numbers")
        if not np.isfinite(priority_N).all():
            missing = int((~np.isfinite(priority_N)).sum())
            raise UserError(
                f"{missing} of {len(priority_N)} requests of the trace are without a priority"
            )
        if self.ageing_s is not None:
            return Keys(priority_N.astype(np.float64) * self.ageing_s)
        _, class_N = np.unique(priority_N, return_inverse=True)
        return Keys(class_N.astype(np.float64) * _STRICT_S)
