"""Plausible runs made up with a seeded generator, which test the report without the engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from simulator.results import folder as results
from simulator.results import tables as records
from simulator.results.folder import Results
from simulator.results.metrics import METRICS
from simulator.results.phases import STEP_PHASES
from tests.report.made_up_explanations import explanation_of
from tests.report.made_up_moves import imbalance_of
from tests.report.made_up_traffic import traffic_of

MOE_SHARES = dict(zip(STEP_PHASES, (0.27, 0.06, 0.24, 0.1, 0.13, 0.12, 0.02, 0.06), strict=True))
DENSE_SHARES = dict(zip(STEP_PHASES, (0.3, 0.5, 0, 0, 0, 0.02, 0.12, 0.06), strict=True))


@dataclasses.dataclass(frozen=True)
class Made:
    """A deployment's tables, and what run.json says about it."""

    name: str
    requests: pd.DataFrame
    steps: pd.DataFrame
    moves: pd.DataFrame
    ranks: pd.DataFrame
    experts: pd.DataFrame
    traffic: pd.DataFrame
    spans: pd.DataFrame
    facts: dict[str, Any]

    @property
    def shown_steps(self) -> dict[str, Any]:
        return self.facts["shown_steps"]


def shown_steps(num_ranks: int, is_moe: bool, is_real: bool = True) -> dict[str, Any]:
    """A decode step that the run took, and a prefill step with all its prompt on one rank."""
    where = {"source": "run", "replica": 0, "number": 17, "start_s": 0.6, "duration_s": 0.03}
    if not is_real:
        where = dict.fromkeys(where) | {"source": "representative"}
    chance = {"mean": 1.21, "low": 1.1, "high": 1.35} if is_moe else None
    where |= {"num_batches": 1, "uniform_imbalance": chance}
    idle = [0] * (num_ranks - 1)
    return {
        "decode": where | {"prefill_tokens": [0, *idle], "decode_tokens": [4] * num_ranks},
        "prefill": where | {"prefill_tokens": [2000, *idle], "decode_tokens": [3] * num_ranks},
    }


def facts(rng: np.random.Generator, is_moe: bool, **changes: Any) -> dict[str, Any]:
    total = 46_702_792_704 if is_moe else 68_976_648_192
    weights = total / 8
    assumptions = [
        {
            "what": "dispatch latency",
            "value": "16.3 us + 3.8 us x log2(nodes)",
            "kind": "fitted",
            "source": "39 low-latency points",
        },
        {
            "what": "engine overhead of a step",
            "value": "1.2 ms",
            "kind": "assumed",
            "source": "no measurement; typical of engines",
        },
        {
            "what": "HBM bandwidth",
            "value": "3.35 TB/s",
            "kind": "published",
            "source": "datasheet, https://example.org/" + "x" * 80,
        },
    ]
    described = {
        "model": "mixtral-8x7b" if is_moe else "llama-2-70b",
        "model_title": "Mixtral 8x7B" if is_moe else "Llama 2 70B",
        "is_rumour": False,
        "is_moe": is_moe,
        "cluster": "h100-sxm-8",
        "cluster_title": "8 x H100 SXM, one node",
        "accelerator": "H100 SXM",
        "num_gpus": 8,
        "replicas": 1,
        "layout": "attention DP 8 x TP 1, EP 8, 1 replica" if is_moe else "TP 8, 1 replica",
        "routing": "log-normal popularity, sigma 0.6" if is_moe else "",
        "routing_source": "fitted to recorded choices" if is_moe else "",
        "placement": "contiguous" if is_moe else "",
        "dispatch": "one copy per expert" if is_moe else "",
        "topology": "one NVLink domain",
        "scheduling": "chunked prefill, 8,192 tokens a step",
        "balancing": "least outstanding",
        "weight_dtype": "fp8",
        "kv_dtype": "bf16",
        "total_parameters": total,
        "active_parameters": 12_879_925_248 if is_moe else total,
        "published_total": 46_700_000_000 if is_moe else 70_000_000_000,
        "published_active": 12_900_000_000 if is_moe else None,
        "model_note": "46.7B and not 56B: the eight experts share attention and embeddings."
        if is_moe
        else "",
        "memory": {
            "weights_bytes": weights,
            "kv_bytes": 72e9 - weights,
            "reserve_bytes": 8e9,
            "total_bytes": 80e9,
        },
        "kv_tokens": int(rng.integers(400_000, 4_000_000)),
        "assumptions": assumptions[: 3 if is_moe else 2],
        "warnings": ["The dispatch model was fitted on 2 to 16 nodes; this run uses 1."]
        if is_moe
        else [],
        "currency": "USD",
    }
    return described | changes


def record(
    name: str,
    seed: int,
    is_moe: bool,
    speed: float = 1.0,
    num_requests: int = 400,
    num_ranks: int = 8,
    layers: int = 32,
    experts: int = 8,
    **changes: Any,
) -> Made:
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(0.2, num_requests)) - 0.0
    arrival_s -= arrival_s[0] if num_requests else 0.0
    num_output = rng.integers(1, 400, num_requests) if num_requests != 1 else np.array([1])
    first_s = arrival_s + rng.lognormal(-1.2, 0.7, num_requests) / speed
    finish_s = first_s + (num_output - 1) * rng.lognormal(-3.5, 0.25, num_requests) / speed
    requests = pd.DataFrame(
        {
            "request": np.arange(num_requests), "replica": 0, "dp_rank": np.arange(num_requests) % num_ranks,
            "arrival_s": arrival_s, "scheduled_s": (arrival_s + first_s) / 2, "first_token_s": first_s, ("finish_s"): finish_s, "stream_s": 0.0,
            "num_input": rng.integers(10, 4000, num_requests), "num_output": num_output, "priority": 0, ("num_cached"): 0, ("num_preemptions"): 0,
            "room_wait_s": 0.0, "transfer_s": 0.0, "num_retries": 0, "outcome": "finished",
        }
    )  # fmt: skip
    shares = MOE_SHARES if is_moe else DENSE_SHARES
    duration_s = np.repeat(0.03 / speed, int(finish_s.max() * speed / 0.035) if num_requests else 0)
    start_s = np.arange(len(duration_s)) * 0.035 / speed
    load = 1 + np.sin(start_s / 9) * 0.6 + rng.random(len(start_s)) * 0.3
    steps = pd.DataFrame(
        {
            "replica": 0, "pool": "both", "limited_by": "none", "start_s": start_s, "duration_s": duration_s, "num_steps": 1,
            "prefill_tokens": rng.integers(0, 4000, len(start_s)), "decode_tokens": (30 * load).astype(int), "decodes": (30 * load).astype(int), ("running"): (30 * load).astype(int),
            "waiting": np.maximum(0, (load - 1.4) * 40).astype(int), "kv_used": np.clip(load / 2.2, 0, 1),
            **{f"{phase}_s": duration_s * share for phase, share in shares.items()},
        }
    )  # fmt: skip
    has_layers = is_moe and num_requests > 0
    return Made(
        name=name,
        requests=requests,
        steps=steps,
        moves=pd.DataFrame(columns=list(records.MOVE_COLUMNS)),
        ranks=_ranks(name, rng, layers, num_ranks)
        if has_layers
        else pd.DataFrame(columns=list(records.RANK_COLUMNS)),
        experts=_experts(name, rng, layers, experts)
        if has_layers
        else pd.DataFrame(columns=list(records.EXPERT_COLUMNS)),
        traffic=traffic_of(name, rng, num_ranks)
        if has_layers
        else pd.DataFrame(columns=list(records.TRAFFIC_COLUMNS)),
        spans=_spans(name, rng, shares, layers, num_ranks, speed)
        if num_requests
        else pd.DataFrame(columns=list(records.SPAN_COLUMNS)),
        facts=facts(
            rng, is_moe, shown_steps=shown_steps(num_ranks, is_moe, seed % 2 == 1), **changes
        ),
    )


def _ranks(name: str, rng: np.random.Generator, layers: int, num_ranks: int) -> pd.DataFrame:
    index = pd.MultiIndex.from_product(
        [["decode", "prefill"], range(layers), range(num_ranks)], names=["phase", "layer", "rank"]
    )
    table = index.to_frame(index=False)
    table.insert(0, "deployment", name)
    table["num_pairs"] = rng.poisson(40 * rng.lognormal(0, 0.4, len(table)))
    table["experts_s"] = 1e-6 * table["num_pairs"]
    table["wait_s"] = (
        table.groupby(["phase", "layer"])["experts_s"].transform("max") - table["experts_s"]
    )
    return table


def _experts(name: str, rng: np.random.Generator, layers: int, experts: int) -> pd.DataFrame:
    load = rng.lognormal(0, 0.7, (layers, experts))
    load /= load.mean(axis=1, keepdims=True)
    layer, expert = np.indices(load.shape)
    return pd.DataFrame(
        {"deployment": name, "layer": layer.ravel(), "expert": expert.ravel(), "load": load.ravel()}
    )


def _spans(
    name: str,
    rng: np.random.Generator,
    shares: dict[str, float],
    layers: int,
    num_ranks: int,
    speed: float,
) -> pd.DataFrame:
    order = ["attention", "collective", "dense", "dispatch", "experts", "wait", "combine"]
    rows: list[tuple[object, ...]] = []
    for phase, step_s in (("decode", 0.03 / speed), ("prefill", 0.12 / speed)):
        for rank in range(num_ranks):
            layer_s = step_s * (1 - shares["overhead"]) / layers
            rows.append((name, phase, rank, "overhead", -1, 0.0, step_s * shares["overhead"]))
            for layer in range(layers):
                now = step_s * shares["overhead"] + layer * layer_s
                skew = rng.uniform(0.7, 1.15)
                for part in order:
                    if shares[part] == 0:
                        continue
                    change = skew if part == "experts" else 1.0
                    length = layer_s * shares[part] * change
                    if part == "wait":
                        length += layer_s * shares["experts"] * (1 - skew)
                    rows.append((name, phase, rank, part, layer, now, max(length, 0.0)))
                    now += max(length, 0.0)
    return pd.DataFrame(rows, columns=list(records.SPAN_COLUMNS))


def summary(made: list[Made], slo: dict[str, float | None]) -> pd.DataFrame:
    """A summary in the shape of the real one; every column filled, undefined where it must be."""
    rows = []
    for r in made:
        row: dict[str, object] = {"deployment": r.name} | dict.fromkeys(METRICS, float("nan"))
        row["num_requests"], row["num_gpus"] = len(r.requests), r.facts["num_gpus"]
        if len(r.requests):
            q = r.requests
            ttft = q["first_token_s"] - q["arrival_s"]
            tpot = ((q["finish_s"] - q["first_token_s"]) / (q["num_output"] - 1))[
                q["num_output"] > 1
            ]
            e2e = q["finish_s"] - q["arrival_s"]
            duration = float(q["finish_s"].max())
            for what, value in (("ttft", ttft), ("tpot", tpot), ("itl", tpot), ("e2e", e2e)):
                for p in (50, 90, 99):
                    if f"{what}_p{p}_s" in row and len(value):
                        row[f"{what}_p{p}_s"] = float(np.percentile(value, p))
            row["ttft_mean_s"], row["duration_s"] = float(ttft.mean()), duration
            row["output_tokens_per_s"] = q["num_output"].sum() / duration
            row["output_tokens_per_s_per_gpu"] = row["output_tokens_per_s"] / 8
            row["utilisation"] = 0.86
            row |= {
                f"{phase}_share": share
                for phase, share in (MOE_SHARES if r.facts["is_moe"] else DENSE_SHARES).items()
            }
            if r.facts["is_moe"]:
                row["load_imbalance"], row["uniform_imbalance"] = 1.43, 1.21
            if slo.get("ttft_s"):
                good = float((ttft <= slo["ttft_s"]).mean())
                row["slo_attainment"], row["goodput_per_s"] = good, good * len(q) / duration
            if r.facts["currency"]:
                row["cost_per_million_output_tokens"] = (
                    8 * 2.5 / 3600 / row["output_tokens_per_s"] * 1e6
                )
        rows.append(row)
    return pd.DataFrame(rows)


def run_of(made: list[Made], **changes: Any) -> Results:
    slo = {"ttft_s": 0.8, "tpot_s": 0.05, "e2e_s": None}
    lengths = {"mean": 1154.7, "p50": 1020.0, "p90": 2610.0, "p99": 4001.0}
    run = {
        "name": "mixtral-8x7b against llama-2-70b",
        "seed": 7,
        "fidelity": "rank",
        "started": "2025-01-01T12:00:00+00:00",
        "wall_s": 12.34,
        "versions": {"moesim": "0.1.0", "numpy": "2.2.0", "pandas": "3.0.1"},
        "revision": "0123abc",
        "workload": {
            "name": "azure-conv", "provenance": "a sample of a public trace", "notes": [("1 request in 40 was kept.")],
            "num_requests": 400, "duration_s": 81.2, "rate_per_s": 4.93, "input": lengths, ("output"): lengths,
        },
        "slo": slo,
        "verdict": {
            "headline": ("mixtral, experts over 8 GPUs serves this workload at 0.42 USD per million output " "tokens, 1.6x cheaper than llama-2-70b."),
            "reasons": [
                ("It reads 12.9B parameters a token, not 69.0B, so a decode step takes 30 ms " "where the dense model takes 55 ms."),
                ("All-to-alls and waiting for the busiest rank take 35 % of its step time: " "a better placement would gain up to 12 %."),
                ("Both meet the TTFT target for most requests; at p99 the mixture of experts " "has 0.3 s to spare."),
            ],
        },
        "deployments": {r.name: r.facts | imbalance_of(r.facts, r.requests) for r in made},
        "scenario": {"name": "x", "deployments": [{"name": r.name} for r in made]},
    } | changes  # fmt: skip
    run["explanation"] = explanation_of({r.name: r.facts for r in made if len(r.requests)})
    return results.gather(run, summary(made, run["slo"] or {}), made)


def plain() -> Results:
    return run_of(
        [
            record("mixtral, experts over 8 GPUs", 1, is_moe=True),
            record(
                "mixtral, balanced placement",
                2,
                is_moe=True,
                speed=1.1,
                replicas=2,
                first_replicas=1,
                changes=[
                    change_of("launches", 10.0, 20.0, 4),
                    change_of("drains", 50.0, 50.0, 4),
                    change_of("leaves", 52.0, 52.0, 0),
                ],
            ),
            record("llama-2-70b, tensor parallel", 3, is_moe=False, speed=0.6),
        ]
    )


def change_of(kind: str, at_s: float, serves_s: float, num_gpus: int) -> dict[str, Any]:
    """A change of the second replica, as run.json has it."""
    times = {"at_s": at_s, "serves_s": serves_s, "num_gpus": num_gpus, "num_requests": 0}
    return {"pool": "both", "kind": kind, "starts": False, "replicas": [1], **times}


def many() -> Results:
    """Nine deployments with long names, one a rumoured model; many layers, experts and ranks."""
    long = "a deployment whose author gave it a name that goes on and on, with every setting in it"
    made = [
        record(
            f"{long}, no. {i}",
            i,
            is_moe=i % 3 != 2,
            speed=0.6 + 0.1 * i,
            num_ranks=96 if i == 0 else 8,
            layers=58 if i < 2 else 24,
            experts=256,
        )
        for i in range(8)
    ]
    return run_of(
        [*made, record("a rumoured one", 9, is_moe=True, is_rumour=True, model_title="Rumoured 2T")]
    )


HOSTILE = "<script>alert('x')</script> & \"quoted\" <b>bold</b>"


def hostile() -> Results:
    made = [
        record(HOSTILE, 1, is_moe=True, model_title=HOSTILE, warnings=[HOSTILE]),
        record("plain", 2, is_moe=False),
    ]
    return run_of(made, name=HOSTILE, verdict={"headline": HOSTILE, "reasons": [HOSTILE]})


def bare() -> Results:
    """No target, no price, almost nothing said in run.json."""
    made = [
        record("only", 4, is_moe=False, num_requests=40, currency="", assumptions=[], memory=None)
    ]
    run = run_of(made, slo={"ttft_s": None, "tpot_s": None, "e2e_s": None})
    return dataclasses.replace(
        run, run={"name": "bare", "slo": run.run["slo"], "deployments": run.run["deployments"]}
    )


RUNS = {
    "plain": plain,
    "many": many,
    "hostile": hostile,
    "bare": bare,
    "one request": lambda: run_of(
        [
            record("moe", 1, is_moe=True, num_requests=1),
            record("dense", 2, is_moe=False, num_requests=1),
        ]
    ),
    "no steps": lambda: run_of(
        [
            record("moe", 1, is_moe=True, num_requests=0),
            record("dense", 2, is_moe=False, num_requests=0),
        ]
    ),
    "one of two ran": lambda: run_of(
        [record("moe", 1, is_moe=True), record("dense", 2, is_moe=False, num_requests=0)]
    ),
    "dense only": lambda: run_of(
        [record("a", 1, is_moe=False), record("b", 2, is_moe=False, speed=2)]
    ),
    "single": lambda: run_of([record("a mixture", 1, is_moe=True)]),
}
