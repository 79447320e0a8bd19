"""Results of serving a trace, before they are assembled into a record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulator.base.columns import Columns, Spool, read_whole
from simulator.deployment.plan import DeploymentPlan
from simulator.engine.audit import Audits
from simulator.engine.by_ranks import ByRanks
from simulator.engine.changes import Changed
from simulator.engine.pool import PoolState
from simulator.engine.step_log import LOG_COLUMNS
from simulator.results.tables import (
    ADMISSION_LIMITS,
    MOVE_COLUMNS,
    ExpertsMoved,
    ReplicasChanged,
)
from simulator.workload.traces import RequestTrace


class Rows(NamedTuple):
    """Rows of a run, stored part by part."""

    requests: Spool
    steps: Spool
    costs: Spool


@dataclass(frozen=True)
class Served:
    """Requests and steps of a run, and the state that it ended in."""

    plan: DeploymentPlan
    trace: RequestTrace
    pools: dict[str, PoolState]
    """Pools by name, ``both`` for one that computes prompts and decodes, else ``decode`` and
    ``prefill``; with the last rows of the window on the trace."""
    by_ranks: dict[str, ByRanks]
    """Executors of each pool's steps, where ranks were simulated."""
    rows: Rows
    ingress_delay_s: float
    """Seconds from the client to the scheduler."""
    changed: tuple[Changed, ...] = ()
    """Changes of replicas that lost GPUs or got them back, in order of time."""
    rebalances: tuple[ExpertsMoved, ...] = ()
    """Moves of experts, in order of time."""
    until_s: float | None = None
    """Time at which the run was ended, seconds; ``None`` where it ended with all requests done."""
    audits: tuple[Audits, ...] = ()
    """Errors of each pool's prices."""

    @cached_property
    def requests(self) -> Columns:
        """Table of requests with ``REQUEST_COLUMNS`` without the deployment, in order of number."""
        return self.rows.requests.close()

    @cached_property
    def steps(self) -> Columns:
        """Table of steps with ``STEP_COLUMNS`` without the deployment, those of a replica in order
        of their start; replica after replica within each part that was stored at once.
        """
        return self.rows.steps.close()

    @cached_property
    def costs(self) -> Columns:
        """Table of :data:`~simulator.engine.step_rows.COST_COLUMNS`, a row for each of
        the steps.
        """
        return self.rows.costs.close()

    def requests_table(self) -> pd.DataFrame:
        """Read all requests as one data frame."""
        return read_whole(self.requests)

    def steps_of(self, name: str) -> pd.DataFrame:
        """Read the steps of a pool as one data frame, replica after replica, with the columns
        ``replica`` (its number in the pool), ``num_steps``, ``decodes`` and
        :data:`~simulator.engine.step_log.LOG_COLUMNS`, ``limited_by`` as an index.
        """
        steps = pd.concat([read_whole(self.steps), read_whole(self.costs)], axis=1)
        steps = steps[steps["pool"] == name].sort_values("replica", kind="stable")
        limits = pd.Categorical(steps["limited_by"], categories=list(ADMISSION_LIMITS))
        steps["limited_by"] = limits.codes.astype(float)
        steps["replica"] -= self._number_of(name, 0)
        columns = ["replica", "num_steps", "decodes", *LOG_COLUMNS]
        return steps[columns].reset_index(drop=True)

    def moves_table(self) -> pd.DataFrame:
        """Table of requests moved between replicas, with ``MOVE_COLUMNS`` without the deployment,
        in order of time.
        """
        rows = [
            (int(request), self._number_of(changed.pool, replica), changed.at_s)
            for changed in self.changed
            for replica, requests in changed.given_back.items()
            for request in requests
        ]
        return pd.DataFrame(rows, columns=list(MOVE_COLUMNS)[1:]).astype(
            {"request": np.int64, "replica": np.int64, "at_s": np.float64}
        )

    def list_changes(self) -> tuple[ReplicasChanged, ...]:
        """List the changes of replicas that lost GPUs or got them back, in order of time."""
        return tuple(
            ReplicasChanged(
                at_s=changed.at_s,
                pool=changed.pool,
                kind=changed.kind,
                starts=changed.kind in ("starts", "grows"),
                replicas=[self._number_of(changed.pool, r) for r in changed.given_back],
                num_requests=len(changed.list_requests()),
                num_gpus=changed.num_gpus,
                serves_s=changed.serves_s,
            )
            for changed in self.changed
        )

    def _number_of(self, pool: str, replica: int) -> int:
        """Number of a pool's replica among those of all pools."""
        return replica + (self.plan.serving.replicas if pool == "prefill" else 0)
