"""Definitions of all metrics. ``METRICS`` is the glossary; :func:`summarise` makes
``summary.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from simulator.base.columns import Columns, Picked
from simulator.config.workload import SLO
from simulator.deployment.plan import DeploymentPlan
from simulator.results.availability import measure_availability, measure_held, price_held
from simulator.results.phases import STEP_PHASES
from simulator.results.tables import DeploymentRecord
from simulator.work.flops import served_flops

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
"""Latencies of a request, seconds: to the first token, of each later token, and to the last."""


class Metric(NamedTuple):
    """One column of ``summary.csv``."""

    label: str
    unit: str
    definition: str
    """Definition in one line, for captions and the report's glossary."""
    better: str
    """Direction that is better: ``higher``, ``lower``, or empty where neither is."""
    is_given: bool = False
    """Whether the arrivals of an open loop decide it, as long as the deployment keeps up."""


_LEVELS = (50, 90, 99)
"""Percentiles of latencies."""


def _list_percentiles(stem: str, latency: str) -> dict[str, Metric]:
    """Metrics of a latency's percentiles over requests."""
    texts = {
        level: "median" if level == 50 else f"{level}th percentile"  # as people call it
        for level in _LEVELS
    }
    return {
        f"{stem}_p{level}_s": Metric(
            f"{stem.upper()} p{level}", "s", f"{latency}, {text} over requests", "lower"
        )
        for level, text in texts.items()
    }


METRICS: dict[str, Metric] = {
    "num_requests": Metric("Requests", "", "requests that finished", ""),
    "num_lost": Metric(
        "Lost requests", "", "requests that were lost, since no replica was left", "lower"
    ),
    "num_gpus": Metric("GPUs", "", "accelerators of the deployment, all replicas", ""),
    "gpus_held": Metric(
        "GPUs held",
        "",
        "accelerators that are paid for, mean over the duration: those of a replica from its "
        "launch until it has drained, all of them without scaling",
        "",
    ),
    "duration_s": Metric(
        "Duration",
        "s",
        "first arrival to last token, or to the last request that was lost",
        "lower",
        is_given=True,
    ),
    "ttft_mean_s": Metric(
        "TTFT mean",
        "s",
        "time to first token: arrival to first output token, queueing included; mean",
        "lower",
    ),
    **_list_percentiles("ttft", "time to first token"),
    "tpot_mean_s": Metric(
        "TPOT mean",
        "s",
        "time per output token: (E2E - TTFT) / (output tokens - 1), per request; mean",
        "lower",
    ),
    **_list_percentiles("tpot", "time per output token"),
    "itl_p50_s": Metric(
        "ITL p50",
        "s",
        "inter-token latency: gaps between deliveries of tokens, pooled over requests; median",
        "lower",
    ),
    "itl_p99_s": Metric(
        "ITL p99", "s", "inter-token latency, pooled over requests; 99th percentile", "lower"
    ),
    **_list_percentiles("e2e", "arrival to last token"),
    "input_tokens_per_s": Metric(
        "Input throughput",
        "token/s",
        "prompt tokens of finished requests over the duration",
        "higher",
        is_given=True,
    ),
    "output_tokens_per_s": Metric(
        "Output throughput", "token/s", "output tokens over the duration", "higher", is_given=True
    ),
    "total_tokens_per_s_per_gpu": Metric(
        "Total throughput per GPU",
        "token/s",
        "input and output tokens over duration and GPUs held",
        "higher",
        is_given=True,
    ),
    "output_tokens_per_s_per_gpu": Metric(
        "Output throughput per GPU",
        "token/s",
        "output tokens over duration and GPUs held",
        "higher",
        is_given=True,
    ),
    "slo_attainment": Metric(
        "SLO attainment",
        "ratio",
        "share of requests that meet all latency targets; lost ones do not",
        "higher",
    ),
    "goodput_per_s": Metric(
        "Goodput", "request/s", "requests per second that meet all latency targets", "higher"
    ),
    "utilisation": Metric(
        "Busy",
        "ratio",
        "share of the time in which a replica runs a step, mean over replicas while held",
        "lower",
    ),
    "load_imbalance": Metric(
        "Expert load imbalance",
        "x",
        "tokens of the busiest rank over the mean rank, mean over MoE layers; 1.0 = even, and "
        "what it has above the imbalance of uniform routing is skew",
        "lower",
    ),
    "uniform_imbalance": Metric(
        "Imbalance of uniform routing",
        "x",
        "what the expert load imbalance would be by chance alone, were every expert equally "
        "likely: the same batches, ranks and placement",
        "",
    ),
    "dropped_share": Metric(
        "Dropped choices",
        "ratio",
        "share of token-expert pairs that were not computed, since their expert had no room, over "
        "all MoE layers and steps; undefined where nothing can be dropped",
        "lower",
    ),
    "availability": Metric(
        "Availability",
        "ratio",
        "share of the held GPU-time in which GPUs serve: neither failed, nor waiting for others of "
        "their replica that have, nor starting; undefined where nothing can fail",
        "higher",
    ),
    **{
        f"{phase}_share": Metric(f"Time in {phase}", "ratio", f"share of step time: {phase}", "")
        for phase in STEP_PHASES
    },
    "mfu": Metric(
        "MFU",
        "ratio",
        "model FLOPs of the tokens served over peak dense FLOPs in busy time",
        "",
    ),
    "mbu": Metric(
        "MBU",
        "ratio",
        "bytes of weights and KV cache that had to be read over peak memory traffic in busy time",
        "",
    ),
    "kv_used_mean": Metric(
        "KV cache used", "ratio", "share of KV blocks in use, mean over time", ""
    ),
    "kv_used_max": Metric("KV cache peak", "ratio", "share of KV blocks in use, highest", ""),
    "prefix_hit_ratio": Metric(
        "Prefix cache hits", "ratio", "share of prompt tokens found in the prefix cache", "higher"
    ),
    "tokens_per_decode": Metric(
        "Tokens per decode",
        "",
        "output tokens that a sequence gets in a decode step, 1 without drafts",
        "",
    ),
    "num_preemptions": Metric(
        "Preemptions", "", "times a request lost its KV blocks and was computed again", "lower"
    ),
    "room_wait_mean_s": Metric(
        "Wait for room to decode",
        "s",
        "until a step of a decode pool finds KV blocks and a place, mean over requests; where "
        "engines compute prompts before, what others wait for behind these is not counted",
        "lower",
    ),
    "num_retries": Metric(
        "Sent again", "", "times a request went to another replica, since its own stopped", "lower"
    ),
    "recomputed_share": Metric(
        "Computed again",
        "ratio",
        "share of the computed prompt tokens that requests had lost with their KV blocks, "
        "output tokens among them, or that were computed for requests that were lost",
        "lower",
    ),
    "cost_per_million_tokens": Metric(
        "Cost per million output tokens",
        "currency",
        "price of the GPUs held for the duration over output tokens",
        "lower",
        is_given=True,
    ),
}
"""Metrics by name, in the order of ``summary.csv``'s columns."""


def summarise(
    plans: Sequence[DeploymentPlan], records: Sequence[DeploymentRecord], slo: SLO
) -> pd.DataFrame:
    """Summarise the deployments in a row each, with the columns of :data:`METRICS`; undefined
    values are NaN.
    """
    rows = []
    for plan, record in zip(plans, records, strict=True):
        rows.append(
            {
                "deployment": plan.name,
                **{key: float(value) for key, value in _measure(plan, record, slo).items()},
            }
        )
    return pd.DataFrame(rows, columns=["deployment", *METRICS])


def latencies(requests: Columns) -> pd.DataFrame:
    """Latencies ``ttft_s``, ``tpot_s`` and ``e2e_s`` of every request; NaN for those that did not
    finish, and TPOT for those of one output token.
    """
    later_tokens = requests["num_output"] - 1
    tpot_s = (requests["finish_s"] - requests["first_token_s"]) / later_tokens.where(
        later_tokens > 0
    )
    return pd.DataFrame(
        {
            "ttft_s": (requests["first_token_s"] - requests["arrival_s"]).where(
                requests["finish_s"].notna()
            ),
            "tpot_s": tpot_s,
            "e2e_s": requests["finish_s"] - requests["arrival_s"],
        }
    )


def describe_latencies(latency: pd.DataFrame) -> dict[str, float]:
    """Means and percentiles of :func:`latencies`, seconds by name in :data:`METRICS`; NaN where no
    request has one.
    """
    found: dict[str, float] = {}
    for name in LATENCIES:
        stem, values = name.removesuffix("_s"), latency[name].dropna()
        at_levels = values.quantile([level / 100 for level in _LEVELS])  # NaN of no values
        found |= {
            f"{stem}_p{level}_s": float(value)
            for level, value in zip(_LEVELS, at_levels, strict=True)
        }
        found[f"{stem}_mean_s"] = float(values.mean()) if len(values) else np.nan
    return found


def is_in_time(latency: pd.DataFrame, slo: SLO) -> pd.Series:
    """Whether each request met every target that is set; a request of one token cannot miss the
    TPOT target, one that did not finish meets none.
    """
    met = latency["e2e_s"].notna()
    for name in LATENCIES:
        limit = getattr(slo, name)
        if limit is not None:
            met &= ~(latency[name] > limit)
    return met


def _measure(plan: DeploymentPlan, record: DeploymentRecord, slo: SLO) -> dict[str, float]:
    everyone, steps = record.requests, record.steps
    is_finished = everyone["outcome"] == "finished"
    requests = everyone if is_finished.all() else Picked(everyone, is_finished.to_numpy())
    num_lost = int((everyone["outcome"] == "lost").sum())
    # Who is lost comes when nobody is there, which counts as well.
    ended_s = np.fmax(everyone["finish_s"], everyone["arrival_s"]).max()
    if num_lost:  # with a replica that stopped
        ended_s = max([ended_s, *(one.at_s for one in record.changes if one.num_requests)])
    duration_s = float(ended_s - everyone["arrival_s"].min())
    num_input, num_output = float(requests["num_input"].sum()), float(requests["num_output"].sum())
    busy_s = float(steps["duration_s"].sum())
    num_replicas = sum(pool.serving.replicas for pool in plan.pools)
    of_pools = measure_held(plan, record.changes, duration_s)
    gpus_held = sum(of_pools)
    cost = price_held(plan, of_pools) * duration_s / 3600
    found = {
        "num_requests": len(requests),
        "num_lost": num_lost,
        "num_gpus": plan.num_gpus,
        "gpus_held": gpus_held,
        "duration_s": duration_s,
        "input_tokens_per_s": num_input / duration_s,
        "output_tokens_per_s": num_output / duration_s,
        "total_tokens_per_s_per_gpu": (num_input + num_output) / duration_s / gpus_held,
        "output_tokens_per_s_per_gpu": num_output / duration_s / gpus_held,
        "utilisation": min(1.0, busy_s / num_replicas / duration_s / (gpus_held / plan.num_gpus)),
        "load_imbalance": record.load_imbalance,
        "uniform_imbalance": record.uniform_imbalance,
        "dropped_share": record.dropped_share,
        "availability": measure_availability(plan, record.changes, duration_s),
        "mfu": _mfu(plan, requests, steps),
        "mbu": record.read_bytes
        / sum(
            pool.placement.accelerator.memory_bytes_per_s * gpu_s
            for pool, gpu_s in _busy_gpus(plan, steps)
        ),
        "kv_used_mean": float((steps["kv_used"] * steps["duration_s"]).sum() / busy_s),
        "kv_used_max": float(steps["kv_used"].max()),
        "prefix_hit_ratio": _ratio(requests["num_cached"].sum(), num_input),
        "tokens_per_decode": _ratio(steps["decode_tokens"].sum(), steps["decodes"].sum()),
        "num_preemptions": float(everyone["num_preemptions"].sum()),
        "room_wait_mean_s": float(requests["room_wait_s"].mean()) if len(requests) else np.nan,
        "num_retries": float(everyone["num_retries"].sum()),
        "recomputed_share": _recomputed_share(plan, requests, steps),
        "cost_per_million_tokens": _ratio(cost * 1e6, num_output),
    }
    found |= _measure_latencies(requests, slo, len(requests) + num_lost, duration_s)
    for level in (50, 99):
        found[f"itl_p{level}_s"] = record.itl.quantile_s(level / 100)
    for phase in STEP_PHASES:
        found[f"{phase}_share"] = float(steps[f"{phase}_s"].sum()) / busy_s
    return {key: found[key] for key in METRICS}


def _measure_latencies(
    requests: Columns, slo: SLO, num_ended: int, duration_s: float
) -> dict[str, float]:
    """Measure the latencies, and the share of ended requests that met the targets."""
    latency = latencies(requests)
    met = float(is_in_time(latency, slo).sum())
    return {
        **describe_latencies(latency),
        "slo_attainment": _ratio(met, num_ended) if slo.is_set else np.nan,
        "goodput_per_s": met / duration_s if slo.is_set else np.nan,
    }


def _ratio(part: float, whole: float) -> float:
    """Ratio, NaN where the whole is 0, such as where no request finished."""
    return float(part) / float(whole) if whole else np.nan


def _recomputed_share(plan: DeploymentPlan, requests: Columns, steps: Columns) -> float:
    """Share of prompt computation beyond each prompt once; the last token that a decode pool
    computes again for every prompt is not counted as repeated.
    """
    once = float((requests["num_input"] - requests["num_cached"]).sum())
    if plan.transfer is not None and plan.transfer.recomputes_last:
        once += len(requests)
    return max(0.0, 1.0 - _ratio(once, steps["prefill_tokens"].sum()))


def _busy_gpus(plan: DeploymentPlan, steps: Columns) -> list[tuple[DeploymentPlan, float]]:
    """Each pool, with its GPUs times the seconds of its steps."""
    if plan.prefill is None:
        return [(plan, plan.placement.layout.num_gpus * float(steps["duration_s"].sum()))]
    is_prompts = steps["pool"] == "prefill"
    of_pools = ((plan, ~is_prompts), (plan.prefill, is_prompts))
    return [
        (pool, pool.placement.layout.num_gpus * float(steps["duration_s"][own].sum()))
        for pool, own in of_pools
    ]


def _mfu(plan: DeploymentPlan, requests: Columns, steps: Columns) -> float:
    placement = plan.placement
    arrays = [
        requests[column].to_numpy(np.int64) for column in ("num_input", "num_output", "num_cached")
    ]
    flops = served_flops(placement.model, *arrays)
    dtype = placement.precision.experts if placement.experts else placement.precision.weights
    return flops / sum(
        pool.placement.accelerator.flops_per_s(dtype) * gpu_s
        for pool, gpu_s in _busy_gpus(plan, steps)
    )
