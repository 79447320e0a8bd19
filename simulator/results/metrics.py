"""Definitions of all metrics. ``METRICS`` is the glossary; :func:`summarise` makes
``summary.csv``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.base.columns import Columns, Picked
from simulator.base.formats import TIMES, UNDEFINED, number, seconds
from simulator.config.workload import SLO
from simulator.deployment.plan import DeploymentPlan
from simulator.results.availability import measure_availability, measure_held, price_held
from simulator.results.phases import STEP_PHASES
from simulator.results.tables import TURNED_AWAY, DeploymentRecord
from simulator.work.flops import served_flops

LATENCIES = ("ttft_s", "tpot_s", "e2e_s")
"""Latencies of a request, seconds: to the first token, of each later token, and to the last."""


class Metric(NamedTuple):
    """One column of ``summary.csv``."""

    label: str
    unit: str
    definition: str
    """Definition in one line, for captions and the report's glossary."""
    better: str = ""
    """Direction that is better: ``higher``, ``lower``, or empty where neither is."""
    is_given: bool = False
    """Whether the arrivals of an open loop decide it, as long as the deployment keeps up."""


_LEVELS = (50, 90, 95, 99)
"""Percentiles of latencies."""


def _list_percentiles(stem: str, latency: str) -> dict[str, Metric]:
    """Metrics of a latency's percentiles over requests."""
    texts = {
        level: "median" if level == 50 else f"{level}th percentile"  # as people call it
        for level in _LEVELS
    }
    return {
        f"{stem}_p{level}_s": Metric(
            f"{stem.upper()} p{level}", "s", f"{latency}, {text} over judged requests", "lower"
        )
        for level, text in texts.items()
    }


_WINDOW = (
    "the window lasts from the first judged arrival to the last arrival, or to the last token "
    "where that is less than two mean stays"
)
"""Time over which tokens and requests are counted (:func:`measure_throughput`)."""
METRICS: dict[str, Metric] = {
    "num_requests": Metric("Requests", "", "judged requests that finished"),
    "num_lost": Metric(
        "Lost requests", "", "judged requests that were lost, since no replica was left", "lower"
    ),
    "num_refused": Metric(
        "Refused requests",
        "",
        "judged requests whose prompt is longer than the engine takes",
        "lower",
    ),
    "num_gpus": Metric("GPUs", "", "accelerators of the deployment, all replicas"),
    "gpus_held": Metric(
        "GPUs held",
        "",
        "accelerators that are paid for, mean over the duration: those of a replica from its "
        "launch until it has drained, all of them without scaling, and idle ones",
    ),
    "duration_s": Metric(
        "Duration",
        "s",
        "first arrival to last token, or to the last request that was lost, of the whole run",
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
        "inter-token latency: gaps between deliveries of tokens, pooled over all requests of the "
        "run; median",
        "lower",
    ),
    "itl_p99_s": Metric(
        "ITL p99", "s", "inter-token latency, pooled over all requests; 99th percentile", "lower"
    ),
    **_list_percentiles("e2e", "arrival to last token"),
    "input_tokens_per_s": Metric(
        "Input throughput",
        "token/s",
        "prompt tokens per second, counted as their first output token comes out, in the window of "
        "the output throughput",
        "higher",
        is_given=True,
    ),
    "output_tokens_per_s": Metric(
        "Output throughput",
        "token/s",
        f"output tokens that come out in the window, over its length; {_WINDOW}",
        "higher",
        is_given=True,
    ),
    "total_tokens_per_s_per_gpu": Metric(
        "Total throughput per GPU",
        "token/s",
        "input and output throughput over the GPUs held in the window",
        "higher",
        is_given=True,
    ),
    "output_tokens_per_s_per_gpu": Metric(
        "Output throughput per GPU",
        "token/s",
        "output throughput over the GPUs held in the window",
        "higher",
        is_given=True,
    ),
    "slo_attainment": Metric(
        "SLO attainment",
        "ratio",
        "share of judged requests that meet all latency targets; lost and refused ones do not",
        "higher",
    ),
    "goodput_per_s": Metric(
        "Goodput",
        "request/s",
        f"judged requests that meet all latency targets, over the window; {_WINDOW}",
        "higher",
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
        f"{phase}_share": Metric(f"Time in {phase}", "ratio", f"share of step time: {phase}")
        for phase in STEP_PHASES
    },
    "mfu": Metric(
        "MFU",
        "ratio",
        "model FLOPs of the tokens served over peak dense FLOPs in busy time",
    ),
    "mbu": Metric(
        "MBU",
        "ratio",
        "bytes of weights and KV cache that had to be read over peak memory traffic in busy time",
    ),
    "kv_used_mean": Metric(
        "KV cache used", "ratio", "share of KV blocks in use, mean over time", ""
    ),
    "kv_used_max": Metric("KV cache peak", "ratio", "share of KV blocks in use, highest"),
    "prefix_hit_ratio": Metric(
        "Prefix cache hits", "ratio", "share of prompt tokens found in the prefix cache", "higher"
    ),
    "tokens_per_decode": Metric(
        "Tokens per decode",
        "",
        "output tokens that a sequence gets in a decode step, 1 without drafts",
    ),
    "num_preemptions": Metric(
        "Preemptions", "", "times a request lost its KV blocks and was computed again", "lower"
    ),
    "room_wait_mean_s": Metric(
        "Wait for room to decode",
        "s",
        "until a step of a decode pool finds KV blocks and a place, mean over judged requests; "
        "where engines compute prompts before, what others wait for behind these is not counted",
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
    "cost_per_million_output_tokens": Metric(
        "Cost per million output tokens",
        "currency",
        "price of the GPUs held in the window of the throughput, over the output tokens in it",
        "lower",
        is_given=True,
    ),
}
"""Metrics by name, in the order of ``summary.csv``'s columns."""


MOST_CLASSES = 20
"""Priorities above which requests are not told apart by them."""
CLASS_COLUMNS = {
    "deployment": "name of the deployment",
    "priority": "of the requests; where the order is by priority, the least is first",
    **{
        name: METRICS[name].definition
        for name in (
            *("num_requests", "num_lost", "num_refused", "slo_attainment"),
            *(f"{stem}_p{level}_s" for stem in ("ttft", "tpot", "e2e") for level in (50, 99)),
        )
    },
}
"""Columns of ``classes.csv``, with their descriptions."""


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


def summarise_classes(
    requests: Mapping[str, Columns], slo: SLO, num_lead_in: int = 0
) -> pd.DataFrame:
    """Summarise the judged requests of each priority, and of none, with the columns of
    :data:`CLASS_COLUMNS`; without rows where all have the same, or there are more than
    :data:`MOST_CLASSES`.

    Args:
        requests: ``REQUEST_COLUMNS`` by deployment.
    """
    judged = {name: select_judged(columns, num_lead_in) for name, columns in requests.items()}
    found = {name: pd.unique(own["priority"]) for name, own in judged.items()}
    rows = []
    if 1 < len(pd.unique(np.concatenate([*found.values()]))) <= MOST_CLASSES:
        for name, priority in ((name, one) for name, own in found.items() for one in _sort(own)):
            column = judged[name]["priority"]
            is_own = column.isna() if pd.isna(priority) else column == priority
            own = Picked(judged[name], is_own.to_numpy())
            finished, counts = _count_outcomes(own)
            measured = _measure_latencies(finished, slo, sum(counts.values()), np.nan)
            rows.append({"deployment": name, "priority": priority, **counts, **measured})
    return pd.DataFrame(rows, columns=list(CLASS_COLUMNS))


def _sort(priorities: Iterable[Any]) -> list[Any]:
    """Priorities in order, none of them (NaN) behind all."""
    return sorted(priorities, key=lambda one: (pd.isna(one), one))


def latencies(requests: Columns) -> pd.DataFrame:
    """Latencies ``ttft_s``, ``tpot_s`` and ``e2e_s`` of every request as its client sees them; NaN
    for those that did not finish, and TPOT for those of one output token.
    """
    later_tokens = requests["num_output"] - 1
    tpot_s = (requests["finish_s"] - requests["first_token_s"]) / later_tokens.where(
        later_tokens > 0
    )
    e2e_s = requests["finish_s"] - requests["arrival_s"] + requests["stream_s"]
    return pd.DataFrame(
        {"ttft_s": measure_ttft(requests).where(e2e_s.notna()), "tpot_s": tpot_s, "e2e_s": e2e_s}
    )


def measure_ttft(requests: Columns) -> pd.Series:
    """Seconds from each request's arrival until its client sees its first token; NaN where none
    came.
    """
    return requests["first_token_s"] - requests["arrival_s"] + requests["stream_s"]


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


def select_judged(requests: Columns, num_lead_in: int) -> Columns:
    """Pick the requests that are judged: all after the first ``num_lead_in``."""
    if not num_lead_in:
        return requests
    return Picked(requests, np.arange(len(requests["arrival_s"])) >= num_lead_in)


class Throughput(NamedTuple):
    """Tokens per second in a window of a run."""

    window_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float


def measure_throughput(requests: Columns, num_lead_in: int = 0) -> Throughput:
    """Measure the tokens that come out in the window in which judged requests arrive, whoever they
    are of, over its length; the drain of the last requests is no part of it.

    A prompt counts when its first output token comes out. Later tokens are taken to come out evenly
    until the last, which is exact but for requests that straddle an edge of the window. Where the
    window is shorter than two mean stays of judged requests, most of which would straddle, it goes
    on to the last token.

    Args:
        requests: all requests, those of the lead-in included; those that did not finish, with no
            ``finish_s``, count for nothing.
    """
    of_judged = select_judged(requests, num_lead_in)
    begin_s = float(of_judged["arrival_s"].min())
    end_s = float(requests["arrival_s"].max())
    stay_s = float((of_judged["finish_s"] - of_judged["arrival_s"]).mean())
    if end_s - begin_s < 2 * stay_s:
        end_s = float(np.fmax(requests["finish_s"].max(), end_s))
    finished = Picked(requests, requests["finish_s"].notna().to_numpy())
    first_s, finish_s = (finished[name].to_numpy(float) for name in ("first_token_s", "finish_s"))
    num_output = finished["num_output"].to_numpy(float)
    gap_s = np.maximum((finish_s - first_s) / np.maximum(num_output - 1, 1), 1e-12)
    # The last token comes at its time to the last digit, which a multiple of a gap may miss.
    until_end = np.clip(np.floor((end_s - first_s) / gap_s) + 1, 0, num_output - 1)
    until_end = np.where(finish_s <= end_s, num_output, until_end)
    before = np.clip(np.ceil((begin_s - first_s) / gap_s), 0, num_output - 1)
    before = np.where(finish_s < begin_s, num_output, before)
    prompts = finished["num_input"].to_numpy(float)[(first_s >= begin_s) & (first_s <= end_s)]
    window_s = end_s - begin_s
    return Throughput(
        window_s,
        _ratio(float(prompts.sum()), window_s),
        _ratio(float((until_end - before).sum()), window_s),
    )


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
    requests = _pick(everyone, "finished")
    of_judged = select_judged(everyone, record.num_lead_in)
    in_judged, counts = _count_outcomes(of_judged)
    # Who is lost comes when nobody is there, which counts as well.
    ended_s = np.fmax(everyone["finish_s"], everyone["arrival_s"]).max()
    if (everyone["outcome"] == "lost").any():  # with a replica that stopped
        ended_s = max([ended_s, *(one.at_s for one in record.changes if one.num_requests)])
    duration_s = float(ended_s - everyone["arrival_s"].min())
    throughput = measure_throughput(everyone, record.num_lead_in)
    begin_s = float(of_judged["arrival_s"].min())
    in_window = measure_held(plan, record.changes, begin_s + throughput.window_s, begin_s)
    per_gpu = [_ratio(rate, sum(in_window)) for rate in throughput[1:]]
    busy_s = float(steps["duration_s"].sum())
    num_replicas = sum(pool.serving.replicas for pool in plan.pools)
    gpus_held = sum(measure_held(plan, record.changes, duration_s))
    share_held = (gpus_held - plan.spec.idle_gpus) / plan.num_gpus
    found = {
        **counts,
        "num_gpus": plan.num_gpus,
        "gpus_held": gpus_held,
        "duration_s": duration_s,
        "input_tokens_per_s": throughput.input_tokens_per_s,
        "output_tokens_per_s": throughput.output_tokens_per_s,
        "total_tokens_per_s_per_gpu": sum(per_gpu),
        "output_tokens_per_s_per_gpu": per_gpu[1],
        "utilisation": min(1.0, busy_s / num_replicas / duration_s / share_held),
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
        "prefix_hit_ratio": _ratio(requests["num_cached"].sum(), requests["num_input"].sum()),
        "tokens_per_decode": _ratio(steps["decode_tokens"].sum(), steps["decodes"].sum()),
        "num_preemptions": float(everyone["num_preemptions"].sum()),
        "room_wait_mean_s": float(in_judged["room_wait_s"].mean()) if len(in_judged) else np.nan,
        "num_retries": float(everyone["num_retries"].sum()),
        "recomputed_share": _recomputed_share(plan, requests, steps),
        "cost_per_million_output_tokens": _ratio(
            price_held(plan, in_window) / 3600 * 1e6, throughput.output_tokens_per_s
        ),
    }
    found |= _measure_latencies(in_judged, slo, sum(counts.values()), throughput.window_s)
    for level in (50, 99):
        found[f"itl_p{level}_s"] = record.itl.quantile_s(level / 100)
    for phase in STEP_PHASES:
        found[f"{phase}_share"] = float(steps[f"{phase}_s"].sum()) / busy_s
    return {key: found[key] for key in METRICS}


def _count_outcomes(requests: Columns) -> tuple[Columns, dict[str, int]]:
    """Pick the requests that finished, and count them and those that were turned away."""
    finished = _pick(requests, "finished")
    away = {f"num_{kind}": int((requests["outcome"] == kind).sum()) for kind in TURNED_AWAY}
    return finished, {"num_requests": len(finished), **away}


def _pick(requests: Columns, outcome: str) -> Columns:
    """Pick the requests with an outcome."""
    has = requests["outcome"] == outcome
    return requests if has.all() else Picked(requests, has.to_numpy())


def _measure_latencies(
    requests: Columns, slo: SLO, num_ended: int, window_s: float
) -> dict[str, float]:
    """Measure the latencies, and the share of ended requests that met the targets."""
    latency = latencies(requests)
    met = float(is_in_time(latency, slo).sum())
    return {
        **describe_latencies(latency),
        "slo_attainment": _ratio(met, num_ended) if slo.is_set else np.nan,
        "goodput_per_s": _ratio(met, window_s) if slo.is_set else np.nan,
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


# Formats of metrics on the page.


KEY_METRICS = (
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "output_tokens_per_s_per_gpu",
    "goodput_per_s",
    "slo_attainment",
    "cost_per_million_output_tokens",
)
"""Metrics of the short comparison; the full table shows all of ``METRICS``."""

_SHARE_DIGITS = 9
"""Digits of a share that are kept; the rest is rounding of a sum of times."""


def metric(name: str, value: float, currency: str) -> str:
    """Write a value of a column of ``summary.csv``, with its unit unless :func:`heading_unit` has
    it.

    >>> metric("slo_attainment", 0.987, ""), metric("ttft_p50_s", 1.5, "")
    ('98.7 %', '1.50 s')
    >>> metric("slo_attainment", 0.9999, ""), metric("wait_share", -6.6e-18, "")
    ('99.9 %', '0 %')
    >>> metric("cost_per_million_output_tokens", 0.5, "USD")
    '0.500 USD'
    """
    if not math.isfinite(value):
        return UNDEFINED
    unit = METRICS[name].unit
    if unit == "s":
        return seconds(value, keep_zeros=True)
    if unit == "ratio":
        share = round(value, _SHARE_DIGITS)
        # Never all unless it is.
        return f"{number(100 * min(share, 0.999 if share < 1 else share), keep_zeros=True)} %"
    if unit == "x":
        return f"{value:.2f}{TIMES}"
    return (
        f"{number(value, keep_zeros=bool(unit))} {currency if unit == 'currency' else ''}".rstrip()
    )


def heading_unit(name: str) -> str:
    """Unit that stands once, beside the metric's label; times, shares and prices have theirs in
    each value.

    >>> heading_unit("goodput_per_s"), heading_unit("ttft_p50_s")
    ('request/s', '')
    """
    unit = METRICS[name].unit
    return "" if unit in ("s", "ratio", "x", "currency") else unit


def better_way(name: str, *, is_open: bool) -> str:
    """Direction that is better, ``higher`` or ``lower``; empty where neither is.

    >>> [better_way("output_tokens_per_s", is_open=is_open) for is_open in (True, False)]
    ['', 'higher']
    """
    return "" if is_open and METRICS[name].is_given else METRICS[name].better


def winners(name: str, values: Iterable[float], *, is_open: bool) -> set[int]:
    """Positions of the best values of a metric, including those that read the same as the best one;
    none where there is nothing to compare, all read the same, or neither direction is better.

    Args:
        is_open: requests arrive by the clock, so that how many are served is given, not won.

    >>> winners("ttft_p50_s", [0.3, 0.2, float("nan")], is_open=True)
    {1}
    >>> winners("mfu", [0.1, 0.2], is_open=True)
    set()
    >>> winners("tpot_p50_s", [0.1470, 0.1474, 0.2], is_open=True)
    {0, 1}
    >>> [winners("output_tokens_per_s", [147, 150], is_open=is_open) for is_open in (True, False)]
    [set(), {1}]
    """
    defined = {place: value for place, value in enumerate(values) if math.isfinite(value)}
    shown = {place: metric(name, value, "") for place, value in defined.items()}
    better = better_way(name, is_open=is_open)
    if not better or len(set(shown.values())) < 2:
        return set()
    choose = max if better == "higher" else min
    best = shown[choose(defined, key=lambda place: defined[place])]
    return {place for place, text in shown.items() if text == best}
