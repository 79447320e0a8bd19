"""Recovery by a restart of the whole replica, as engines do without elastic expert parallelism."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import Seconds
from simulator.policies.placement import Placed
from simulator.policies.recovery import Loss, Requests


class Restart(Frozen):
    """Loss of the whole replica with any of its GPUs, until all work again and it has started.

    By default a failure is noticed at once and a start takes no time. Published: DeepSeek-V3.2 on
    32 GPUs restarts in two to three minutes (LMSYS, "Elastic EP in SGLang", March 2026); hung
    collectives are noticed by their timeout, 600 s by default in PyTorch's process groups over
    NCCL.
    """

    detection_s: Seconds = 0.0
    """Seconds until a failure is noticed; until then the replica hangs, and gets requests."""
    startup_s: Seconds = 0.0
    """Seconds of a start: from the moment at which all GPUs work again until the replica serves."""
    requests: Requests = "resume"
    """Fate of the replica's requests: ``resume`` elsewhere with the output tokens that were sent,
    ``retry`` elsewhere from the beginning, or ``lose`` them."""

    def shrink(self, loss: Loss) -> Placed | None:
        return None

    def interrupt_s(self, loaded_bytes: float) -> float:
        return 0.0  # nobody asks: no rank goes on without the others
