"""Most that caches on their way between pools and the exchanges of steps slow each other, where
they are priced with the wires to themselves.

Of a wire that both need, each has half. Beside steps that exchange for a share ``x`` of their time
a cache is on the wires for at most ``1 + x`` times its seconds ``t``, in which the exchanges lose
``x t``: less, as far as ranks use other wires then, or wait for a latency. Caches that meet each
other at a receiver are not counted: they are priced as one queue before all receivers.
"""

from __future__ import annotations

from simulator.base.columns import Columns
from simulator.deployment.plan import DeploymentPlan
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
    num_bytes = float(requests["transfer_bytes"].sum())
    carried_s = num_bytes / transfer.receivers * wider / transfer.bytes_per_s
    pool_S = steps["pool"].to_numpy()
    duration_S = steps["duration_s"].to_numpy()
    exchange_S = (steps["dispatch_s"] + steps["combine_s"] + steps["collective_s"]).to_numpy()
    share, slower = {}, {}
    for name in ("decode", "prefill"):
        busy_s = float(duration_S[pool_S == name].sum())
        share[name] = float(exchange_S[pool_S == name].sum()) / busy_s if busy_s else 0.0
        slower[name] = carried_s * share[name] / busy_s if busy_s else 0.0
    return WiresShared(sum(share.values()), slower["decode"], slower["prefill"])
