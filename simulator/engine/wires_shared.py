"""Most that caches on their way between pools, and the exchanges of steps, slow each other, where
they are priced with the wires to themselves.

Of a wire that both need, each has half. Beside steps that exchange for a share ``x`` of their time
a cache is on the wires for at most ``1 + x`` times its seconds ``t``, in which the exchanges lose
``x t``: less, as far as ranks use other wires then, or wait for a latency. Caches that meet at a
receiver share its wire too, and were priced as one queue before all receivers. Of a queue before
each, twice the mean wait is the most that sharing a wire takes where arrivals are Poisson: sharing
adds ``rho / (1 - rho)`` of the mean work, and a queue half of that or more (L. Kleinrock, Queueing
Systems II, 1976, chapter 4).
"""

from __future__ import annotations

import numpy as np

from simulator.base.columns import Columns
from simulator.cost.transfer import Transfer
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.state import Floats
from simulator.results.tables import WiresShared


def bound_sharing(plan: DeploymentPlan, requests: Columns, steps: Columns) -> WiresShared | None:
    """Bound how much longer a run's caches and steps would take on wires that they share; ``None``
    without a prefill pool.
    """
    transfer, prefill = plan.transfer, plan.prefill
    if transfer is None or prefill is None:
        return None
    layout = prefill.placement.layout
    wider = max(1.0, transfer.receivers / (layout.tp * layout.pp))
    carried_N = requests["transfer_bytes"].to_numpy() / transfer.receivers * wider
    carried_N = carried_N / transfer.bytes_per_s
    carried_s = float(carried_N.sum())
    met = _bound_meeting(transfer, layout.attention_dp, requests, carried_N)
    pool_S = steps["pool"].to_numpy()
    duration_S = steps["duration_s"].to_numpy()
    exchange_S = (steps["dispatch_s"] + steps["combine_s"] + steps["collective_s"]).to_numpy()
    share, slower = {}, {}
    for name in ("decode", "prefill"):
        busy_s = float(duration_S[pool_S == name].sum())
        share[name] = float(exchange_S[pool_S == name].sum()) / busy_s if busy_s else 0.0
        slower[name] = carried_s * (1.0 + met) * share[name] / busy_s if busy_s else 0.0
    return WiresShared(sum(share.values()) + met, slower["decode"], slower["prefill"])


def _bound_meeting(
    transfer: Transfer, prefill_dp: int, requests: Columns, carried_N: Floats
) -> float:
    """Bound the share by which caches take longer since others arrive at the same data-parallel
    group meanwhile.

    Args:
        prefill_dp: data-parallel groups of a prefill replica, each of which sends one cache after
            the other; where there are several, nothing tells which of them sent a cache.
        carried_N: seconds of each request's cache on a wire that it has to itself, ``[N]``.
    """
    is_carried = carried_N > 0
    if not is_carried.any():
        return 0.0
    leaves_N = requests["first_token_s"].to_numpy()
    if transfer.recomputes_last:  # its first token comes behind the transfer
        leaves_N = leaves_N - requests["transfer_s"].to_numpy()
    order = np.flatnonzero(is_carried)[np.argsort(leaves_N[is_carried], kind="stable")]
    begin_N, work_N = leaves_N[order], carried_N[order]
    if prefill_dp == 1:
        sender_N = requests["prefill_replica"].to_numpy()[order]
        for sender in np.unique(sender_N):
            is_own = sender_N == sender
            begin_N[is_own] = find_starts(begin_N[is_own], work_N[is_own])
        again = np.argsort(begin_N, kind="stable")
        order, begin_N, work_N = order[again], begin_N[again], work_N[again]
    group_N = np.stack([requests[name].to_numpy()[order] for name in ("replica", "dp_rank")])
    groups, group_of = np.unique(group_N, axis=1, return_inverse=True)
    num_groups = groups.shape[1]
    waited_s = sum(
        sum_waits(begin_N[group_of == group], work_N[group_of == group])
        for group in range(num_groups)
    )
    priced_s = sum_waits(begin_N, work_N / num_groups)
    return max(0.0, 2.0 * waited_s - priced_s) / float(work_N.sum())


def sum_waits(begin_N: Floats, work_N: Floats) -> float:
    """Sum the seconds that pieces of work wait for one server (:func:`find_starts`)."""
    return float((find_starts(begin_N, work_N) - begin_N).sum())


def find_starts(begin_N: Floats, work_N: Floats) -> Floats:
    """Find the times at which one server begins pieces of work, which it takes one after the other.

    Args:
        begin_N: time at which each comes, in order.
        work_N: seconds of each.

    >>> find_starts(np.array([0.0, 1.0, 9.0]), np.array([2.0, 2.0, 1.0]))
    array([0., 2., 9.])
    """
    before_N = np.cumsum(work_N) - work_N
    return np.asarray(before_N + np.maximum.accumulate(begin_N - before_N))
