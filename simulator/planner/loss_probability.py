"""Share of the time in which no more machines or replicas are out of work than may be lost."""

from __future__ import annotations

from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.config.capacity import Spare
from simulator.config.failures import FailureRates

Floats = NDArray[np.float64]


class Failing(NamedTuple):
    """Failures of a cluster's GPUs."""

    mtbf_hours: float
    """Mean hours that a GPU works between two failures, those of its node and switch among them."""
    repair_hours: float
    node_share: float
    """Share of failures that take a node."""
    switch_share: float
    """Share of failures that take a switch."""
    nodes_per_switch: int

    def find_share_out(self, share: float, num_gpus: int) -> float:
        """Share of the time in which something of so many GPUs is out of work by itself.

        Args:
            share: of its GPUs' failures that are its own.
        """
        return (
            self.repair_hours / (self.mtbf_hours / (share * num_gpus) + self.repair_hours)
            if (share > 0.0)
            else 0.0
        )


class _Groups(NamedTuple):
    """Replicas by what they lose together."""

    replica_out: float
    """Share of the time in which a replica is out that no other one is out with."""
    per_node: int
    """Replicas of a node."""
    node_out: float
    per_switch: int
    """Replicas under a switch."""
    switch_out: float


def probability_at_most(
    most: int, count: int, num_gpus: int, node_gpus: int, failing: Failing
) -> float:
    """Probability that at most ``most`` of ``count`` replicas are out of work.

    Args:
        num_gpus: GPUs of a replica.
        node_gpus: GPUs of a node.
    """
    if most >= count:
        return 1.0
    groups = _group(num_gpus, node_gpus, failing)
    full, rest = divmod(count, groups.per_switch)
    whole = _raise(_list_under_switch(groups, groups.per_switch, most), full, most)
    found = _multiply(whole, _list_under_switch(groups, rest, most), most)
    return float(min(1.0, found.sum()))


def _group(num_gpus: int, node_gpus: int, failing: Failing) -> _Groups:
    """Group replicas by their nodes and switches; those of several nodes, or of several switches,
    have these to themselves.
    """
    num_nodes = -(-num_gpus // node_gpus)
    num_switches = -(-num_nodes // failing.nodes_per_switch)
    alone = 1.0 - failing.node_share - failing.switch_share
    works = (1.0 - failing.find_share_out(alone, 1)) ** num_gpus
    node_out = failing.find_share_out(failing.node_share, node_gpus)
    switch_gpus = node_gpus * failing.nodes_per_switch
    switch_out = failing.find_share_out(failing.switch_share, switch_gpus)
    per_node = max(1, node_gpus // num_gpus)
    per_switch = max(1, failing.nodes_per_switch // num_nodes) * per_node
    if per_node == 1:
        works, node_out = works * (1.0 - node_out) ** num_nodes, 0.0
    if per_switch == 1:
        works, switch_out = works * (1.0 - switch_out) ** num_switches, 0.0
    return _Groups(1.0 - works, per_node, node_out, per_switch, switch_out)


def _list_under_switch(groups: _Groups, count: int, most: int) -> Floats:
    """Distribution of the number out of ``count`` replicas under one switch."""
    full, rest = divmod(count, groups.per_node)
    nodes = _raise(_list_on_node(groups, groups.per_node, most), full, most)
    inside = _multiply(nodes, _list_on_node(groups, rest, most), most)
    return _lose_all(inside, count, groups.switch_out, most)


def _list_on_node(groups: _Groups, count: int, most: int) -> Floats:
    """Distribution of the number out of ``count`` replicas on one node."""
    is_out = groups.replica_out
    alone = [
        comb(count, lost) * is_out**lost * (1.0 - is_out) ** (count - lost)
        for lost in range(min(count, most) + 1)
    ]
    return _lose_all(np.array(alone), count, groups.node_out, most)


def _lose_all(inside: Floats, count: int, share_out: float, most: int) -> Floats:
    """Add that all are out for a share of the time."""
    found = np.zeros(min(count, most) + 1)
    found[: len(inside)] = (1.0 - share_out) * inside
    if count <= most:
        found[count] += share_out
    return found


def _raise(base: Floats, power: int, most: int) -> Floats:
    """Distribution of the sum of independent numbers of one distribution."""
    found = np.ones(1)
    while power:
        if power & 1:
            found = _multiply(found, base, most)
        base, power = _multiply(base, base, most), power >> 1
    return found


def _multiply(one: Floats, other: Floats, most: int) -> Floats:
    """Distribution of the sum of two independent numbers, up to ``most``."""
    return np.convolve(one, other)[: most + 1]


_MOST_TRIED = 1 << 12
"""Spare replicas beyond which no more are tried."""
MOST_SPARES = 1 << 20
"""Spare replicas where as many as are tried are not enough: more than any cluster holds."""


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
        count = replicas + spares
        return probability_at_most(spares, count, num_gpus, node_gpus, failing) >= availability

    high = 0
    while not is_enough(high):
        high = 2 * high + 1
        if high >= _MOST_TRIED:
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
    count = replicas + spares
    low, high = (
        probability_at_most(spares, count, num_gpus, node_gpus, failing)
        for failing in _list_failing(rates)
    )
    return low, high


def _list_failing(rates: FailureRates) -> tuple[Failing, Failing]:
    """List the failures at the lowest and the highest ``mtbf_gpu_hours``."""
    shares = rates.repair_hours, rates.node_share, rates.switch_share, rates.nodes_per_switch
    return Failing(rates.mtbf_gpu_hours_low, *shares), Failing(rates.mtbf_gpu_hours_high, *shares)
