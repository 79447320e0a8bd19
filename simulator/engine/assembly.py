"""Record of a run: tables of requests and steps, and one shown step of each kind, repeated rank by
rank.
"""

from __future__ import annotations

from math import nan

import numpy as np
import pandas as pd

from simulator.base.columns import Columns, Picked
from simulator.base.errors import UserError
from simulator.deployment.plan import DeploymentPlan
from simulator.deployment.uniform_routing import mean_uniform_imbalances
from simulator.engine.overflow_count import OverflowCount
from simulator.engine.probe import probe
from simulator.engine.served import Served
from simulator.engine.state import Floats
from simulator.engine.wires_shared import bound_sharing
from simulator.results.tables import (
    NUM_GAP_BINS,
    DeploymentRecord,
    Gaps,
    ImbalanceCurve,
)

_NUM_BINS = 120
"""Bins of the load imbalance over time: as many as a figure shows."""


def make_record(served: Served) -> DeploymentRecord:
    """Assemble a run's record; replicas are numbered on from pool to pool.

    Raises:
        UserError: if no step was taken.
        RuntimeError: if a request neither finished nor was lost, and nothing ended the run.
    """
    plan, requests, steps = served.plan, served.requests, served.steps
    unfinished = int((requests["outcome"] == "unfinished").sum())
    if not len(steps):
        raise UserError(
            f"deployment '{plan.name}': no step was taken: its replicas stop before any request"
        )
    if unfinished and served.until_s is None:
        raise RuntimeError(f"{unfinished} requests of deployment '{plan.name}' never finished")
    probes, read_bytes, uniform_S = [], 0.0, np.full(len(steps), nan)
    overflow = OverflowCount(plan.placement.model.num_moe_layers)
    for name, pool in served.pools.items():
        is_own = (steps["pool"] == name).to_numpy()
        own = steps if is_own.all() else Picked(steps, is_own)
        if plan.placement.experts is not None:
            uniform_S[is_own] = mean_uniform_imbalances(
                pool.plan, _tokens_of_batches(pool.plan, own)
            )
        overflow.join(pool.overflow)
        read_bytes += (
            float(served.costs["read_bytes"][is_own].sum()) * pool.plan.placement.layout.num_gpus
        )
        first = plan.serving.replicas if name == "prefill" else 0
        executor = served.by_ranks.get(name)
        found = probe(pool, plan.machines[name], own, requests, executor, first)
        probes.append(found if name == "both" else found.select_phase(name))
    gaps = sum(
        (pool.clock.gap_counts.sum(axis=0) for pool in served.pools.values()),
        np.zeros(NUM_GAP_BINS, dtype=np.int64),
    )
    duration_s = steps["duration_s"].to_numpy()
    dropped_share = _share_dropped(plan, steps, served.costs)

    def mean_over_time(values_S: Floats) -> float:
        return (
            float((values_S * duration_s).sum() / duration_s.sum())
            if plan.placement.experts
            else nan
        )

    def add_name(frame: pd.DataFrame) -> pd.DataFrame:
        named_frame = frame.copy(deep=False)
        named_frame.insert(0, "deployment", plan.name)
        return named_frame

    def join_probes(table: str) -> pd.DataFrame:
        frames = [getattr(found, table) for found in probes]
        return add_name(pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0])

    return DeploymentRecord(
        name=plan.name,
        requests=requests,
        steps=steps,
        ranks=join_probes("ranks"),
        experts=add_name(probes[0].experts),
        traffic=join_probes("traffic"),
        spans=join_probes("spans"),
        itl=Gaps(gaps),
        load_imbalance=mean_over_time(served.costs["load_imbalance"].to_numpy()),
        uniform_imbalance=mean_over_time(uniform_S),
        read_bytes=read_bytes,
        dropped_share=dropped_share,
        overflow_by_layer=overflow.report(dropped_share),
        moves=add_name(served.moves_table()),
        changes=served.list_changes(),
        rebalances=served.rebalances,
        imbalance_curve=_measure_imbalance(served, uniform_S),
        price_audit=next((one.mixes for one in served.audits if one.mixes), None),
        changed_audit=next((one.changed for one in served.audits if one.changed), None),
        shown_steps={phase: step for found in probes for phase, step in found.shown_steps.items()},
        judge_from_s=served.trace.judge_from_s,
        is_open=served.trace.concurrency is None,
        wires_shared=None if served.by_ranks else bound_sharing(plan, requests, steps),
    )


def _measure_imbalance(served: Served, uniform_S: Floats) -> ImbalanceCurve | None:
    """Load imbalance over time; ``None`` for a dense model."""
    if served.plan.placement.experts is None:
        return None
    steps = served.steps
    start_s, duration_s = (steps[name].to_numpy() for name in ("start_s", "duration_s"))
    width_s = float((start_s + duration_s).max()) / _NUM_BINS
    bin_S = np.minimum((start_s / width_s).astype(np.int64), _NUM_BINS - 1)

    def mean_in_bins(values_S: Floats) -> list[float | None]:
        is_known = np.isfinite(values_S)
        weight_S = np.where(is_known, duration_s, 0.0)
        total = np.bincount(bin_S, weights=np.where(is_known, values_S, 0.0) * weight_S)
        weight = np.bincount(bin_S, weights=weight_S)
        return [
            float(sum_s / of) if of > 0 else None for sum_s, of in zip(total, weight, strict=True)
        ]

    imbalance = mean_in_bins(served.costs["load_imbalance"].to_numpy())
    at_s = ((np.arange(len(imbalance)) + 0.5) * width_s).tolist()
    return ImbalanceCurve(at_s, imbalance, mean_in_bins(uniform_S))


def _share_dropped(plan: DeploymentPlan, steps: Columns, costs: Columns) -> float:
    """Share of token-expert pairs dropped, over all layers and steps; NaN where none can be."""
    placement = plan.placement
    moe = placement.model.moe
    if moe is None or not placement.drops_pairs:
        return nan
    tokens = int(steps["prefill_tokens"].sum() + steps["decode_tokens"].sum())
    pairs = tokens * moe.top_k * placement.model.num_moe_layers
    return float(costs["dropped_pairs"].sum()) / pairs if pairs else nan


def _tokens_of_batches(plan: DeploymentPlan, steps: Columns) -> Floats:
    """Tokens of one batch that passes the routed experts in each step, ``[S]``: a pipeline's
    batches in flight and the halves of two-batch overlap are assumed equal.
    """
    halves = 2 if plan.spec.overlap == "two_batch" else 1
    of_decode = 1 + plan.placement.drafts.num_tokens
    tokens_S = (steps["prefill_tokens"] + of_decode * steps["decodes"]).to_numpy(np.float64)
    tokens_S /= steps["num_steps"].to_numpy()
    return np.maximum(tokens_S / (plan.placement.layout.pp * halves), 1.0)
