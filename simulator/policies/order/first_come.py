"""Order of arrival, first come, first served."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.policies.order import Keys, Queued


class FirstCome(Frozen):
    """A preempted request stands where the engine has it: first with vLLM, last with SGLang."""

    def keys(self, requests: Queued) -> Keys | None:
        return None
