"""Share of the time in which no more machines or replicas are out of work than may be lost, and the
spare replicas that a share takes.
"""

from __future__ import annotations

from functools import lru_cache

from simulator.config.capacity import Spare
from simulator.config.failure_rates import FailureRates
from simulator.planner.failing_together import Failing, probability_at_most

_MOST_TOGETHER = 1 << 12
"""Spare replicas beyond which no more are tried where several fail together."""
MOST_SPARES = 1 << 20
"""Spare replicas beyond which no more are tried: more than any cluster holds."""


def share_of_time_within(
    num_gpus: int, host_gpus: int, spare: Spare, rates: FailureRates
) -> tuple[float, float]:
    """Share of the time in which no more is lost than ``spare``, at the lowest and the highest
    ``mtbf_gpu_hours``.

    What fails is repaired after a fixed time, so that without failures of whole nodes or switches
    the number out of work is binomial. Where nodes may be lost, one is out with any of its GPUs.

    Args:
        num_gpus: GPUs of the cluster.
        host_gpus: GPUs of one node.
    """
    unit_gpus = min(host_gpus, num_gpus) if spare.nodes else 1
    units, spares = -(-num_gpus // unit_gpus), spare.nodes or spare.gpus
    left = max(0, units - spares)
    return share_of_time_serving(left, min(spares, units), unit_gpus, host_gpus, rates)


def count_spare_replicas(
    replicas: int, num_gpus: int, node_gpus: int, availability: float, rates: FailureRates
) -> int:
    """Count the spare replicas with which at least ``replicas`` serve for a share of the time, at
    the lowest ``mtbf_gpu_hours``; :data:`MOST_SPARES` where as many are not enough.

    Args:
        num_gpus: GPUs of a replica, which serves while all of them work.
        node_gpus: GPUs of a node.
    """
    failing = _list_failing(rates)[0]
    return _count_spares(replicas, num_gpus, node_gpus, availability, failing)


@lru_cache(maxsize=1 << 16)
def _count_spares(
    replicas: int, num_gpus: int, node_gpus: int, availability: float, failing: Failing
) -> int:
    def is_enough(spares: int) -> bool:
        found = _share_serving(replicas, spares, num_gpus, node_gpus, failing)
        return found >= availability

    fails_together = failing.node_share + failing.switch_share > 0
    high, highest = 0, _MOST_TOGETHER if fails_together else MOST_SPARES
    while not is_enough(high):
        high = 2 * high + 1
        if high >= highest:
            return MOST_SPARES
    low = (high - 1) // 2  # not enough, unless both are 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def share_of_time_serving(
    replicas: int, spares: int, num_gpus: int, node_gpus: int, rates: FailureRates
) -> tuple[float, float]:
    """Share of the time in which at least ``replicas`` of so many and the spare ones serve, at the
    lowest and the highest ``mtbf_gpu_hours``.

    Args:
        num_gpus: GPUs of a replica, which serves while all of them work.
        node_gpus: GPUs of a node.
    """
    low, high = (
        _share_serving(replicas, spares, num_gpus, node_gpus, failing)
        for failing in _list_failing(rates)
    )
    return low, high


def _list_failing(rates: FailureRates) -> tuple[Failing, Failing]:
    """List the failures at the lowest and the highest ``mtbf_gpu_hours``."""
    shares = rates.repair_hours, rates.node_share, rates.switch_share, rates.nodes_per_switch
    return Failing(rates.mtbf_gpu_hours_low, *shares), Failing(rates.mtbf_gpu_hours_high, *shares)


def _share_serving(
    replicas: int, spares: int, num_gpus: int, node_gpus: int, failing: Failing
) -> float:
    if failing.node_share + failing.switch_share > 0:
        return probability_at_most(spares, replicas + spares, num_gpus, node_gpus, failing)
    is_out = _share_of_time_out(num_gpus, failing.mtbf_hours, failing.repair_hours)
    return _binomial_at_most(spares, replicas + spares, is_out)


def _share_of_time_out(num_gpus: int, mtbf_hours: float, repair_hours: float) -> float:
    """Share of the time in which any of ``num_gpus`` is out of work."""
    return 1.0 - (mtbf_hours / (mtbf_hours + repair_hours)) ** num_gpus


def _binomial_at_most(most: int, count: int, share: float) -> float:
    """Probability of at most ``most`` of ``count``, each with probability ``share``."""
    from scipy.special import bdtr  # a tenth of a second, which runs need not

    return float(bdtr(min(most, count), count, share))
