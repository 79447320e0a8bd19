"""Share of the time in which no more machines are out of work than may be lost."""

from __future__ import annotations

from scipy.special import bdtr

from simulator.config.capacity import Spare
from simulator.config.failure_rates import FailureRates


def share_of_time_within(
    num_gpus: int, host_gpus: int, spare: Spare, rates: FailureRates
) -> tuple[float, float]:
    """Share of the time in which no more is lost than ``spare``, at the lowest and the highest
    ``mtbf_gpu_hours``.

    GPUs fail independently and are repaired after a fixed time, so that the number out of work is
    binomial. Where nodes may be lost, a node is out with any of its GPUs.

    Args:
        num_gpus: GPUs of the cluster.
        host_gpus: GPUs of one node.
    """
    low, high = (
        _share_within(num_gpus, host_gpus, spare, hours, rates.repair_hours)
        for hours in (rates.mtbf_gpu_hours_low, rates.mtbf_gpu_hours_high)
    )
    return low, high


def _share_within(
    num_gpus: int, host_gpus: int, spare: Spare, mtbf_hours: float, repair_hours: float
) -> float:
    is_out = repair_hours / (mtbf_hours + repair_hours)
    if not spare.nodes:
        return _binomial_at_most(spare.gpus, num_gpus, is_out)
    num_nodes = -(-num_gpus // host_gpus)
    node_is_out = 1.0 - (1.0 - is_out) ** min(host_gpus, num_gpus)
    return _binomial_at_most(spare.nodes, num_nodes, node_is_out)


def _binomial_at_most(most: int, count: int, share: float) -> float:
    """Probability of at most ``most`` of ``count``, each with probability ``share``."""
    return float(bdtr(min(most, count), count, share))
