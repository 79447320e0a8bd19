"""What a run leaves: tables of requests and steps, and representative steps run again rank by
rank.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulator.deployment.plan import DeploymentPlan
from simulator.engine.fast import LOG_COLUMNS
from simulator.engine.pool import Pool
from simulator.engine.probe import probe
from simulator.results.tables import (
    ADMISSION_LIMITS,
    NUM_GAP_BINS,
    STEP_COLUMNS,
    DeploymentRecord,
    Gaps,
)

_COUNTS = {
    "prefill_tokens": "int64",
    "decode_tokens": "int64",
    "running": "int64",
    "waiting": "int64",
}


def make_record(
    plan: DeploymentPlan, requests: pd.DataFrame, pools: dict[str, Pool]
) -> DeploymentRecord:
    """Put a run's rows together.

    Args:
        requests: ``REQUEST_COLUMNS`` but the deployment.
        pools: by name, ``both`` for one that computes prompts and decodes; replicas are numbered on
            from pool to pool.
    """
    unfinished = int(requests["finish_s"].isna().sum())
    if unfinished:
        raise RuntimeError(f"{unfinished} requests of deployment '{plan.name}' never finished")
    logs, probes, read_bytes, number = [], [], 0.0, 0
    for name, pool in pools.items():
        own = []
        for replica in pool.replicas:
            log = pd.DataFrame(replica.log(), columns=list(LOG_COLUMNS))
            log["limited_by"] = pd.Categorical.from_codes(
                log["limited_by"].astype("int8"), pd.Index(ADMISSION_LIMITS)
            )
            log.insert(0, "replica", number)
            log.insert(1, "pool", name)
            own.append(log)
            number += 1
        logs += own
        steps = pd.concat(own, ignore_index=True)
        read_bytes += float(steps["read_bytes"].sum()) * pool.plan.layout.num_gpus
        found = probe(pool.plan, pool.prices, steps, requests)
        probes.append(found if name == "both" else found.only(name))
    everything = pd.concat(logs, ignore_index=True)
    replicas = [replica for pool in pools.values() for replica in pool.replicas]
    gaps = sum(
        (replica.clock.gap_counts for replica in replicas), np.zeros(NUM_GAP_BINS, dtype=np.int64)
    )
    weighted = everything["load_imbalance"] * everything["duration_s"]
    steps = everything[[column for column in STEP_COLUMNS if column != "deployment"]]

    def named(frame: pd.DataFrame) -> pd.DataFrame:
        named_frame = frame.copy()
        named_frame.insert(0, "deployment", plan.name)
        return named_frame

    def together(table: str) -> pd.DataFrame:
        frames = [getattr(found, table) for found in probes]
        return named(pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0])

    return DeploymentRecord(
        name=plan.name,
        requests=named(requests),
        steps=named(steps.astype(_COUNTS)),
        ranks=together("ranks"),
        experts=named(probes[0].experts),
        traffic=together("traffic"),
        spans=together("spans"),
        itl=Gaps(gaps),
        load_imbalance=float(weighted.sum() / everything["duration_s"].sum())
        if plan.experts
        else float("nan"),
        read_bytes=read_bytes,
    )
