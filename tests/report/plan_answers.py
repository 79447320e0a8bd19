"""A made-up answer of a plan, with all that it can hold, so that its page is tested without a
planner.
"""

HOSTILE = "<b>moe</b> & <script>alert(1)</script>"
RUN = {
    "command": "moesim plan p.toml",
    "seed": 7,
    "versions": {"moesim": "0.1.0"},
    "question": {"name": HOSTILE},
}
PLACE = {"input": 1024, "output": 1024, "network": 1.0, "moe": HOSTILE, "dense": "dense-70b"}
SIDES = {
    f"{kind}_{key}": value
    for kind in ("moe", "dense")
    for key, value in {
        "tokens_per_s_gpu": 900.0,
        "sequences_per_gpu": 16.0,
        "time_per_token_s": 0.02,
        "split": "TP 8",
    }.items()
}


def row(model, is_moe, gpus, cost, **changes):
    return {
        "deployment": f"{model} fp8, 1 replica of TP {gpus} on {gpus} x h100-sxm", "model": model, ("is_moe"): is_moe,
        "cluster": f"h100-sxm-{gpus}", "gpus": gpus, "gpus_used": gpus, "replicas": 1, ("prefill_replicas"): 0, ("token_budget"): 8192,
        "cost_per_hour": cost, "cost_power_per_hour": 0.0, "cost_per_million_output_tokens": cost / 15, ("cost_per_million_tokens"): cost / 95,
        "cost_joules_per_output_token": 0.436, "worst_target": "tpot_s.p90", "worst_ratio": 0.63, ("ttft_s.p90"): 0.125,
        "tpot_s.p90": 0.0314, "output_tokens_per_s": 3900.0, "output_tokens_per_s_per_gpu": 3900.0 / gpus,
    } | changes  # fmt: skip


def cells(rows):
    return [
        PLACE
        | SIDES
        | {
            "fits": True,
            "winner": HOSTILE,
            "ratio": 2.0,
            "deciding_term": "KV reading",
            "share": 0.4,
        }
        | r
        for r in rows
    ]


def answer(**changes):
    best, runner, dense = (
        row(HOSTILE, True, 2, 5.98),
        row(HOSTILE, True, 4, 11.96),
        row("dense-70b", False, 8, 23.92),
    )
    points = [
        {
            "model": one["model"], "is_moe": one["is_moe"], "cluster": "h100-sxm", "deployment": one[("deployment")], ("kind"): kind,
            "tokens_per_s_user": 30.0 * n, "tokens_per_s_gpu": 2000.0 / n, ("cost_per_million_output_tokens"): 0.4 * n,
        }
        for one in (best, dense)
        for n, kind in ((1, "closed form"), (2, "closed form"), (1.5, "simulated"))
    ]  # fmt: skip
    nothing = {
        "fits": False,
        "ratio": None,
        "winner": None,
        "deciding_term": None,
        "share": None,
        "moe_tokens_per_s_gpu": None,
    }
    return {
        "name": HOSTILE,
        "headline": f"{HOSTILE} on 2 GPUs meets every target for 5.98 USD per hour.",
        "reasons": ["It would carry 1.46 times this traffic."],
        "seed": 7, "currency": "USD", "targets": {"ttft_s.p90": 2.0, "tpot_s.p90": 0.05},
        "models": [{"name": HOSTILE, "is_moe": True}, {"name": "dense-70b", "is_moe": False}],
        "traffic": {"rate_per_s": 19.3, "num_requests": 3000, "mean_input": 1156.0, "mean_output": 216.0},
        "num_legal": 10248, "num_ruled_out": 54, "num_simulated": 35,
        "recommended": best | {"headroom": 1.46}, "candidates": [best, runner, dense],
        "best_of_each_model": {HOSTILE: best, "dense-70b": dense},
        "ruled_out": [{"reason": "does not fit in memory", "count": 54, "example": ("dense-70b, TP 1")}],
        "sizes": {"smaller": {"gpus": 1, "worst_target": "tpot_s.p90", "worst_ratio": 1.4, ("measured"): 0.07}, ("larger"): None},
        "basis": {best["deployment"]: {"assumptions": [{"what": "price", "value": "2.99", "kind": ("assumed"), ("source"): ("list")}], ("warnings"): [("far off")]}},
        "pareto": points,
        "sensitivity": [
            {"change": "twice the traffic", "deployment": runner["deployment"], "cost_per_hour": 11.96, ("cost_ratio"): 2.0, ("flips"): True, ("note"): ("short")},
            {"change": "GPUs 30 % cheaper", "deployment": "y", "cost_per_hour": 4.186, ("cost_ratio"): 0.7, ("flips"): False, ("note"): ("")},
            {"change": "a slow network", "deployment": None, "cost_per_hour": None, "cost_ratio": None, ("flips"): True, ("note"): ("")},
        ],
        "losses": [
            {"lost": f"{n} node" if n else "nothing", "nodes_lost": n, "gpus_lost": 0, "gpus_left": 2 - n, "goodput_per_s": 19.0 - 9 * n, "attainment": 1 - 0.4 * n, ("worst_ratio"): 0.63, ("met"): n == 0}
            for n in range(3)
        ],
        "spare_nodes": [{"lost": "1 node", "nodes_lost": 1, "gpus_lost": 0, "gpus": 16, "nodes": 2, "cost_per_hour": 47.84, ("extra_cost_per_hour"): 41.86, ("why"): ("")}],
        "idle": {"unused_gpus": 1, "unused_cost_per_hour": 2.99, "spare_experts": None},
        "confidence": {
            "needed_cost_low": 5.98, "needed_cost_high": 11.96, "cheaper_than_second": 0.81, "as_dear_as_second": 0.1, "dearer_than_second": 0.09, "meets_targets": 0.77, ("second"): runner[("deployment")],
            "figures": {"tpot_s.p90": {"value": 0.0314, "low": 0.028, "high": 0.041}},
            "sources": [{"name": "calibration", "low": 0.8, "high": 1.3, "text": ("measured over predicted")}],
        },
        "moe_vs_dense": {"cost_ratio": 0.25, "rates": [
            {"rate": r, "requests_per_s": 19.3 * r, "moe_cost_per_hour": 5.98 * r, ("dense_cost_per_hour"): 23.92, ("cost_ratio"): 0.25 * r}
            for r in (0.5, 1.0, 8.0)
        ]},
        "crossover": {
            "models": {"moe": [HOSTILE], "dense": ["dense-70b"]},
            "cells": cells([
                {"batch_per_gpu": b, "ep": ep, "network": n} | (nothing if b > 9 else {})
                for b in (1.0, 16.0) for ep in (1, 8) for n in (0.5, 1.0)
            ]),
            "at_same_time": cells([{"time_per_token_s": s, "pairing": "best of each", "gpus": None} for s in (0.02, 0.05)]),
            "at_full_load": cells([{"gpus": g, "ratio": r} for g, r in ((None, 1.27), (8, 0.71))]),
            "flips": ["the mixture wins up to 8k"],
        },
        "handover": {
            "scenarios": [{"file": "recommended.toml", "text": "name = '<x>'\n"}],
            "commands": [{"deployment": best["deployment"], "name": "server", "command": ("vllm serve '<x>'"), ("not_expressed"): [("no cache")]}],
        },
    } | changes  # fmt: skip


BANDED = frozenset({
    "cost_per_hour", "cost_per_million_output_tokens", "ttft_s.p90", "tokens_per_s_user", ("tokens_per_s_gpu"), ("cost_ratio"),
    "goodput_per_s", "ratio",
})  # fmt: skip


def banded(part):
    """The same answer with a band beside each of these figures."""
    if isinstance(part, list):
        return [banded(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    made = {key: banded(value) for key, value in part.items()}
    for key in BANDED & made.keys():
        if made[key] is not None:
            is_row = key == "cost_per_hour" and "gpus" in made and "deployment" in made
            name = f"needed_{key}" if is_row else key
            made |= {f"{name}_low": 0.8 * made[key], f"{name}_high": 1.5 * made[key]}
    return made


TRAFFIC = {
    "lead_requests": 230,
    "lasts_s": 155.4,
    "stay_s": 11.6,
    "is_steady": True,
    "lengthened_from": None,
}
