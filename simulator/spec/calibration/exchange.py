"""Exchanges between ranks: latencies and achieved shares of the wires' peaks."""

from __future__ import annotations

from simulator.spec.base import NonNegative, Positive, Size
from simulator.spec.calibration.fit import Fit


class OperationFit(Fit):
    """A collective: a latency that grows with the number of nodes, and achieved shares of the wires' peaks."""

    latency_s: NonNegative
    """Inside one fast domain."""
    scale_out_latency_s: NonNegative
    """Across domains: at one doubling, less ``latency_per_doubling_s``."""
    latency_per_doubling_s: NonNegative
    """Added for each doubling of the number of nodes."""
    latency_per_rank_s: NonNegative = 0.0
    """Added for each further rank."""
    scale_up_fraction: Positive
    scale_out_fraction: Positive
    max_nodes: Size = 1
    """Largest number of nodes in what it was fitted on; beyond it the result is extrapolated, and says so."""

    def total_latency_s(self, num_nodes: int, num_ranks: int) -> float:
        """Latency of one operation over ``num_ranks`` ranks in ``num_nodes`` domains, seconds."""
        ranks_s = self.latency_per_rank_s * max(0, num_ranks - 2)
        if num_nodes <= 1:
            return self.latency_s + ranks_s
        doublings = (num_nodes - 1).bit_length()
        return self.scale_out_latency_s + self.latency_per_doubling_s * doublings + ranks_s
