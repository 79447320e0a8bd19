"""How far the simulator's prediction of a MoE layer is from the layer's real run on this machine,
over a grid it was not fitted on.

``make bench-twin`` calibrates the machine and runs this; nothing else may run meanwhile. Writes a
CSV, a row a configuration, and prints the distribution of the errors and how many of the measured
times lie in the band of the prediction, which is stretched by the pace of the machine as that of
``moesim execute`` is. The calibration timed models
of hidden sizes 128, 256 and 512 under one mild skew; the grid has other shapes, skews, expert
counts and token counts.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.base.frozen import validate
from simulator.calibration.host.measure import measure_pace
from simulator.config.deployment import DeploymentSpec
from simulator.config.execution import ExecutionSpec
from simulator.deployment.plan import make_plan
from simulator.engine.probe import forecast, make_even_batch
from simulator.planner.calibration_error import read_bands
from simulator.runtime.job import Step, make_job
from simulator.runtime.layers.weights import Part
from simulator.runtime.nodes import connect
from simulator.runtime.ray_backend import RayBackend
from simulator.runtime.timeline import layer_seconds

RANKS = (1, 2, 4)
TOKENS = (8, 32, 128, 512, 2048)
SKEWS = (0.0, 0.6, 1.2)
EXPERTS = ((4, 1), (8, 2), (16, 1), (16, 4), (32, 2))
"""Experts and top-k."""
HIDDEN, WIDTH = 384, 640
WARM_UP, STEPS = 2, 9
PHASES = ("dense", "experts", "dispatch", "combine")
MODEL = """
title = "one shape of the grid"
hidden_size = {hidden}
vocab_size = 32
weight_dtype = "fp32"
layers = [{{ repeat = 2, pattern = [["full", "moe"]] }}]
[mixers]
full = {{ kind = "gqa", num_heads = 1, num_kv_heads = 1, head_size = 8 }}
[ffns]
moe = {{ kind = "moe", num_experts = {experts}, top_k = {top_k}, intermediate_size = {width} }}
"""


def plan_of(folder, num_ranks, experts, top_k, skew):
    model = folder / f"{experts}-{top_k}.toml"
    model.write_text(MODEL.format(hidden=HIDDEN, width=WIDTH, experts=experts, top_k=top_k))
    table = {
        "name": model.stem,
        "model": model.name,
        "cluster": f"this-machine-{num_ranks}",
        "parallel": {"attention_dp": num_ranks, "ep": num_ranks},
        "dispatch": {"kind": "per_rank"},
        "routing": {"kind": "zipf", "exponent": skew} if skew else {"kind": "uniform"},
    }
    return make_plan(validate(DeploymentSpec, table, "twin"), 11, "twin", folder)


def steps_of(num_tokens):
    return [
        Step(number, num_tokens, 1, 0, offset=611 * number) for number in range(WARM_UP + STEPS)
    ]


def predicted_seconds(plan, step):
    sequences_d = tuple(
        Part(d, plan.placement.layout.attention_dp).num(step.num_sequences)
        for d in range(plan.placement.layout.attention_dp)
    )
    even = make_even_batch(sequences_d, 1, 0), step.offset
    [times] = forecast(plan, [even], keep_spans=True)
    found = []
    for layer in range(plan.placement.model.num_layers):
        own = [span for span in times.spans if span.layer == layer and span.phase in PHASES]
        found.append(
            max(span.start_s + span.duration_s for span in own) - min(span.start_s for span in own)
        )
    return statistics.mean(found)


def rows(backend, folder, num_ranks):
    for (experts, top_k), skew in itertools.product(EXPERTS, SKEWS):
        plan = plan_of(folder, num_ranks, experts, top_k, skew)
        backend.load(make_job(plan, folder))
        pace = measure_pace(backend, plan.placement.calibration)
        low, high = read_bands(plan, is_pooled=False).token
        for num_tokens in TOKENS:
            steps = steps_of(num_tokens)
            moments = [[shard.moments for shard in backend.step(step)] for step in steps][WARM_UP:]
            measured = [
                layer_seconds(found, layer, PHASES)
                for found in moments
                for layer in range(plan.placement.model.num_layers)
            ]
            # Only now: predicting between the steps would empty their caches.
            predicted = [predicted_seconds(plan, step) for step in steps[WARM_UP:]]
            yield {
                "ep": num_ranks,
                "experts": experts,
                "top_k": top_k,
                "skew": skew,
                "tokens": num_tokens,
                "measured_s": statistics.median(measured),
                "measured_p10_s": float(np.quantile(measured, 0.1)),
                "measured_p90_s": float(np.quantile(measured, 0.9)),
                "predicted_s": pace * statistics.median(predicted),
                "pace": pace,
                "band_low": low,
                "band_high": high,
            }


def right_orders(table):
    """Pairs of configurations whose measured times differ by over 15 %, and the share of them that
    the prediction orders alike.
    """
    measured, predicted = (
        np.log(table["measured_s"].to_numpy()),
        np.log(table["predicted_s"].to_numpy()),
    )
    first, second = np.triu_indices(len(table), 1)
    gap = measured[first] - measured[second]
    differs = np.abs(gap) > np.log(1.15)
    right = np.sign(gap) == np.sign(predicted[first] - predicted[second])
    return int(differs.sum()), float(right[differs].mean())


def summary(table):
    error = table["predicted_s"] / table["measured_s"] - 1
    return (
        f"{len(table):4d}   {error.abs().median():6.1%}   {error.abs().quantile(0.9):6.1%}   "
        f"{error.median():+6.1%}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    started_s = time.perf_counter()
    found = []
    with tempfile.TemporaryDirectory() as name, connect() as nodes:
        for num_ranks in RANKS:
            backend = RayBackend(nodes, np.zeros(num_ranks, dtype=np.int64), ExecutionSpec())
            for row in rows(backend, Path(name), num_ranks):
                found.append(row)
                print(
                    f"\r{len(found)} of {len(RANKS) * len(EXPERTS) * len(SKEWS) * len(TOKENS)}",
                    end="",
                    file=sys.stderr,
                )
            backend.close()
    print(f"\r{time.perf_counter() - started_s:.0f} s", file=sys.stderr)
    table = pd.DataFrame(found)
    table["error"] = table["predicted_s"] / table["measured_s"] - 1
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False, float_format="%.6g")
    print("              rows   median      p90     bias")
    print(f"all           {summary(table)}")
    for column in ("ep", "tokens", "skew", "experts", "top_k"):
        for value, part in table.groupby(column):
            print(f"{column + ' ' + str(value):14}{summary(part)}")
    ratio = table["measured_s"] / table["predicted_s"]
    print(
        f"in their bands of 80 %: {ratio.between(table['band_low'], table['band_high']).mean():.1%}"
    )
    pairs, share = right_orders(table)
    print(f"right order of {pairs} pairs that differ by over 15 %: {share:.1%}")


if __name__ == "__main__":
    main()
