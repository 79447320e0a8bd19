"""Every number that people compare, defined once. ``METRICS`` is the glossary; :func:`summarise` makes ``summary.csv``."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """One column of ``summary.csv``."""

    label: str
    unit: str
    definition: str
    """One line, for captions and the report's glossary."""
    better: str
    """``higher``, ``lower`` or empty."""


METRICS: dict[str, Metric] = {
    "num_requests": Metric("Requests", "", "requests that finished", ""),
    "num_gpus": Metric("GPUs", "", "accelerators of the deployment, all replicas", ""),
    "duration_s": Metric("Duration", "s", "first arrival to last token", "lower"),
    "ttft_mean_s": Metric("TTFT mean", "s", "time to first token: arrival to first output token, queueing included; mean", "lower"),
    "ttft_p50_s": Metric("TTFT p50", "s", "time to first token, median over requests", "lower"),
    "ttft_p90_s": Metric("TTFT p90", "s", "time to first token, 90th percentile over requests", "lower"),
    "ttft_p99_s": Metric("TTFT p99", "s", "time to first token, 99th percentile over requests", "lower"),
    "tpot_mean_s": Metric(
        "TPOT mean", "s", "time per output token: (E2E - TTFT) / (output tokens - 1), per request; mean", "lower"
    ),
    "tpot_p50_s": Metric("TPOT p50", "s", "time per output token, median over requests", "lower"),
    "tpot_p90_s": Metric("TPOT p90", "s", "time per output token, 90th percentile over requests", "lower"),
    "tpot_p99_s": Metric("TPOT p99", "s", "time per output token, 99th percentile over requests", "lower"),
    "itl_p50_s": Metric("ITL p50", "s", "inter-token latency: gaps between output tokens, pooled over requests; median", "lower"),
    "itl_p99_s": Metric("ITL p99", "s", "inter-token latency, pooled over requests; 99th percentile", "lower"),
    "e2e_p50_s": Metric("E2E p50", "s", "arrival to last token, median over requests", "lower"),
    "e2e_p90_s": Metric("E2E p90", "s", "arrival to last token, 90th percentile over requests", "lower"),
    "e2e_p99_s": Metric("E2E p99", "s", "arrival to last token, 99th percentile over requests", "lower"),
    "input_tokens_per_s": Metric("Input throughput", "token/s", "prompt tokens of finished requests over the duration", "higher"),
    "output_tokens_per_s": Metric("Output throughput", "token/s", "output tokens over the duration", "higher"),
    "total_tokens_per_s_per_gpu": Metric(
        "Total throughput per GPU", "token/s", "input and output tokens over duration and GPUs", "higher"
    ),
    "output_tokens_per_s_per_gpu": Metric("Output throughput per GPU", "token/s", "output tokens over duration and GPUs", "higher"),
    "slo_attainment": Metric("SLO attainment", "ratio", "share of requests that meet all latency targets", "higher"),
    "goodput_per_s": Metric("Goodput", "request/s", "requests per second that meet all latency targets", "higher"),
    "utilisation": Metric("Busy", "ratio", "share of the duration in which a replica runs a step, mean over replicas", "lower"),
    "load_imbalance": Metric(
        "Expert load imbalance", "ratio", "tokens of the busiest rank over the mean rank, mean over MoE layers; 1.0 = even", "lower"
    ),
    **{
        f"{phase}_share": Metric(f"Time in {phase}", "ratio", f"share of step time: {phase}", "")
        for phase in ("attention", "dense", "experts", "dispatch", "combine", "wait", "collective", "overhead")
    },
    "mfu": Metric("MFU", "ratio", "model FLOPs of the tokens served over peak dense FLOPs in busy time", "higher"),
    "mbu": Metric(
        "MBU", "ratio", "bytes of weights and KV cache that had to be read over peak memory traffic in busy time", "higher"
    ),
    "kv_used_mean": Metric("KV cache used", "ratio", "share of KV blocks in use, mean over time", ""),
    "kv_used_max": Metric("KV cache peak", "ratio", "share of KV blocks in use, highest", ""),
    "prefix_hit_ratio": Metric("Prefix cache hits", "ratio", "share of prompt tokens found in the prefix cache", "higher"),
    "num_preemptions": Metric("Preemptions", "", "times a request lost its KV blocks and was computed again", "lower"),
    "cost_per_million_tokens": Metric(
        "Cost per million output tokens", "currency", "price of all GPUs for the duration over output tokens", "lower"
    ),
}
