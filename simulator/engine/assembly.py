"""What a run leaves: tables of requests and steps, and a step of each kind run again rank by
rank.
"""

from __future__ import annotations

from dataclasses import replace
from math import nan

import numpy as np
import pandas as pd

from simulator.base.errors import UserError
from simulator.deployment.plan import DeploymentPlan
from simulator.deployment.uniform_routing import mean_uniform_imbalances
from simulator.engine.probe import probe
from simulator.engine.served import Served
from simulator.engine.state import Floats
from simulator.policies.overflow import may_drop
from simulator.results.tables import (
    ADMISSION_LIMITS,
    NUM_GAP_BINS,
    STEP_COLUMNS,
    DeploymentRecord,
    Gaps,
)


def make_record(served: Served) -> DeploymentRecord:
    """Put a run's rows together; replicas are numbered on from pool to pool.

    Raises:
        UserError: if no step was taken.
        RuntimeError: if a request neither finished nor was lost, and nothing ended the run.
    """
    plan, requests = served.plan, served.requests_table()
    unfinished = int((requests["outcome"] == "unfinished").sum())
    if not len(served.log):
        raise UserError(
            f"deployment '{plan.name}': no step was taken: its replicas stop before any request"
        )
    if unfinished and served.until_s is None:
        raise RuntimeError(f"{unfinished} requests of deployment '{plan.name}' never finished")
    tables = {name: served.steps_of(name) for name in served.pools}
    served = replace(served, log=served.log[:0].copy())  # a long log is not held twice
    logs, probes, uniform, read_bytes, number = [], [], [], 0.0, 0
    for name, pool in served.pools.items():
        steps = tables.pop(name)
        steps["limited_by"] = pd.Categorical.from_codes(
            steps["limited_by"].astype("int8"), pd.Index(ADMISSION_LIMITS)
        )
        steps["replica"] += number
        steps.insert(1, "pool", name)
        number += pool.num_replicas
        logs.append(steps)
        uniform.append(mean_uniform_imbalances(pool.plan, _tokens_of_batches(pool.plan, steps)))
        read_bytes += float(steps["read_bytes"].sum()) * pool.plan.placement.layout.num_gpus
        found = probe(pool.plan, pool.prices, steps, requests, served.by_ranks.get(name))
        probes.append(found if name == "both" else found.only(name))
    everything = pd.concat(logs, ignore_index=True) if len(logs) > 1 else logs[0]
    gaps = sum(
        (pool.clock.gap_counts.sum(axis=0) for pool in served.pools.values()),
        np.zeros(NUM_GAP_BINS, dtype=np.int64),
    )
    duration_s = everything["duration_s"].to_numpy()

    def mean_over_time(values_S: Floats) -> float:
        return (
            float((values_S * duration_s).sum() / duration_s.sum())
            if plan.placement.experts
            else nan
        )

    imbalance = everything.pop("load_imbalance").to_numpy()
    steps = everything.drop(columns=["read_bytes", "dropped_pairs"])

    def named(frame: pd.DataFrame) -> pd.DataFrame:
        named_frame = frame.copy(deep=False)
        named_frame.insert(0, "deployment", plan.name)
        return named_frame

    def together(table: str) -> pd.DataFrame:
        frames = [getattr(found, table) for found in probes]
        return named(pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0])

    return DeploymentRecord(
        name=plan.name,
        requests=named(requests),
        steps=named(steps[[column for column in STEP_COLUMNS if column != "deployment"]]),
        ranks=together("ranks"),
        experts=named(probes[0].experts),
        traffic=together("traffic"),
        spans=together("spans"),
        itl=Gaps(gaps),
        load_imbalance=mean_over_time(imbalance),
        uniform_imbalance=mean_over_time(np.concatenate(uniform)),
        read_bytes=read_bytes,
        dropped_share=_share_dropped(plan, everything),
        moves=named(served.moves_table()),
        changes=served.list_changes(),
        shown_steps={phase: step for found in probes for phase, step in found.shown_steps.items()},
    )


def _share_dropped(plan: DeploymentPlan, steps: pd.DataFrame) -> float:
    """Share of token-expert pairs that were dropped, over all layers and steps; NaN where none can
    be.
    """
    placement = plan.placement
    moe, experts = placement.model.moe, placement.experts
    if moe is None or experts is None or not may_drop(experts.overflow):
        return nan
    tokens = int(steps["prefill_tokens"].sum() + steps["decode_tokens"].sum())
    pairs = tokens * moe.top_k * placement.model.num_moe_layers
    return float(steps["dropped_pairs"].sum()) / pairs if pairs else nan


def _tokens_of_batches(plan: DeploymentPlan, steps: pd.DataFrame) -> Floats:
    """Tokens of a batch that passes the routed experts in each step, ``[S]``: a pipeline's batches
    in flight and the halves of two-batch overlap are taken to be alike.
    """
    halves = 2 if plan.spec.overlap == "two_batch" else 1
    of_decode = 1 + plan.placement.drafts.num_tokens
    tokens_S = (steps["prefill_tokens"] + of_decode * steps["decodes"]).to_numpy(np.float64)
    tokens_S /= steps["num_steps"].to_numpy()
    return np.maximum(tokens_S / (plan.placement.layout.pp * halves), 1.0)
