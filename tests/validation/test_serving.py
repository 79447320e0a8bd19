"""Serving points: how rows are read, laws of the closed loop, and how far off predictions are.

Points: NVIDIA aiconfigurator-core 0.12.0, Apache-2.0. Each limit leaves about a quarter more than
was seen when the engines were fitted.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.config.calibration.engine import find_engine_key
from simulator.engine.table import make_table
from simulator.engine.timeline import serve
from simulator.lab.results.scores import is_answered
from simulator.lab.validation import score_rows
from simulator.lab.validation.serving import COLUMNS, MEASURES, answer, groups
from simulator.lab.validation.serving.answer import prepare
from simulator.lab.validation.serving.deployments import deployment_of, find_model, stream_interval
from simulator.lab.validation.serving.load import (
    measure,
    serve_closed_loop,
    sums_of,
    trace_of,
)
from simulator.lab.validation.serving.points import UnreadableError, read_point
from simulator.results.metrics import latencies
from simulator.step.prices import Prices
from tests.shared import shared_file

POINT = {
    "id": "2026_04_06_llama_3_1_8b_h100_sxm_vllm_fp8_agg_128x32_c4_tp1_ep1_1",
    "backend": "vllm",
    "backend_version": "0.12.0",
    "model_path": "meta-llama/Llama-3.1-8B-Instruct",
    "system": "h100_sxm",
    "mode": "agg",
    "isl": 128,
    "osl": 32,
    "gemm_quant_mode": "fp8",
    "tp_size": 1,
}


def row(**changes):
    return {**POINT, **changes}


def answered(*rows):
    return answer(pd.DataFrame(rows), workers=1)


@pytest.mark.parametrize(
    ("sizes", "split"),
    [
        ({"tp_size": 8, "moe_tp_size": 1, "moe_ep_size": 8}, (8, 1, 8)),
        ({"tp_size": 64, "attention_dp_size": 1, "moe_tp_size": 8, "moe_ep_size": 8}, (8, 1, 8)),
        ({"tp_size": 1, "attention_dp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, (1, 8, 8)),
        ({"tp_size": 1, "attention_dp_size": 16, "moe_tp_size": 4, "moe_ep_size": 4}, (1, 4, 4)),
        (
            {"tp_size": 2, "attention_dp_size": float("nan"), "moe_tp_size": 4, "moe_ep_size": 1},
            (2, 2, 1),
        ),
        ({"tp_size": 1, "moe_tp_size": 0, "moe_ep_size": 0}, (1, 1, 1)),
        ({"tp_size": float("nan"), "moe_ep_size": None}, (1, 1, 1)),
    ],
)
def test_splits_are_read_with_their_quirks(sizes, split):
    pool = read_point(row(**sizes)).decode
    assert (pool.tp, pool.attention_dp, pool.ep) == split


def test_concurrency_is_in_the_id_or_follows_from_the_batch():
    assert read_point(row(id="x_c64_tp8")).concurrency == 64
    assert read_point(row(id="x_c_tp8", batch_size=4, attention_dp_size=8)).concurrency == 32
    with pytest.raises(UnreadableError, match="in flight"):
        read_point(row(id="x_c_tp8", batch_size=float("nan")))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": "mystery"}, "engine 'mystery'"),
        ({"system": "tpu_v9"}, "no accelerator file for 'tpu_v9'"),
        ({"model_path": "nobody/Unknown-1T"}, "no model file for 'nobody/Unknown-1T'"),
        ({"isl": float("nan")}, "isl and osl"),
        ({"mode": float("nan")}, "neither agg nor disagg"),
        ({"tp_size": 7}, "must divide"),
        (
            {"mode": "disagg", "prefill_tp_size": 1, "decode_tp_size": 1, "decode_pp_size": 2},
            "pipeline parallelism",
        ),
        (
            {"model_path": "meta-llama/Llama-3.1-405B", "gemm_quant_mode": "bfloat16"},
            "does not fit",
        ),
    ],
)
def test_what_cannot_be_answered_says_why_and_spoils_its_row_only(changes, reason):
    found = answered(row(), row(**changes))
    assert not found.status[0].startswith("unsupported")
    assert found.status[1].startswith("unsupported: ")
    assert reason in found.status[1]
    assert np.isfinite(found.seconds[0]).all()
    assert np.isnan(found.seconds[1]).all()


def test_pipelines_are_answered_and_said_to_be_new():
    found = answered(row(), row(pp_size=2))
    assert found.status[1].startswith("extrapolated: ")
    assert "pipeline stages" in found.status[1]
    assert np.isfinite(found.seconds).all()


def test_names_of_repositories():
    assert find_model("QWEN/qwen3-235b-a22b-instruct-2507").is_listed
    assert find_model("someone/Llama-3.3-70B-Instruct-NVFP4") == ("llama-3.1-70b", False)
    assert find_model("openai/gpt-oss-120b").model == "gpt-oss-120b"
    assert find_model("nobody/Unknown-1T") is None
    found = answered(row(model_path="someone/Llama-3.1-8B-Instruct-FP8-dynamic"))
    assert found.status[0].startswith("extrapolated: ")


def test_releases_take_the_newest_entry_that_is_not_newer_or_the_oldest():
    keys = ("any", "trtllm", "trtllm@1.0.0", "trtllm@1.2.0")
    assert [
        find_engine_key(keys, f"trtllm@{v}")
        for v in ("1.2.0rc6.post3", "1.1.0", "1.3.1", "0.9", "")
    ] == [
        "trtllm@1.2.0",
        "trtllm@1.0.0",
        "trtllm@1.2.0",
        "trtllm@1.0.0",
        "trtllm",
    ]


@pytest.mark.parametrize("requests", [16, 64])
@pytest.mark.parametrize("engine", ["sglang", "trtllm", "vllm"])
def test_a_run_says_what_is_validated(engine, requests):
    """At a serving point; what a run's front end holds back is missing from its batches (3 %)."""
    versions = {"sglang": "0.5.9", "trtllm": "1.1.0", "vllm": "0.12.0"}
    told = {"backend": engine, "backend_version": versions[engine]}
    point = read_point(row(id=f"x_c{requests}_tp1", isl=1000, osl=300, **told))
    one = next(prepare([point]))
    served = serve(one.plan, trace_of(point), fill=lambda *_: one.table)
    found = latencies(served.requests).mean()
    known = measure(one.plan, one.table, point)
    assert found["ttft_s"] == pytest.approx(known.ttft_s, rel=0.03)
    assert found["tpot_s"] == pytest.approx(known.tpot_s, rel=0.04)
    streams = served.requests["stream_s"] / one.plan.placement.calibration.engine.stream_s
    assert streams.max() == pytest.approx(requests)


def test_more_requests_in_flight_take_longer_each_and_serve_more():
    found = answered(*(row(id=f"a_c{c}_tp1", isl=512, osl=128) for c in (1, 8, 64)))
    ttft_s, tpot_s = found.seconds.T
    assert (np.diff(tpot_s) > 0).all()
    assert (np.diff(ttft_s) > 0).all()
    assert (np.diff(np.array([1, 8, 64]) / (ttft_s + 127 * tpot_s)) > 0).all()


def test_latencies_are_linear_in_the_engines_coefficients(tiny):
    """What fits rest on: which requests share a step does not depend on how long steps take."""
    plan = tiny.plan("moe", tp=2, ep=2)
    trace = replace(tiny.trace(24), arrival_s=np.zeros(24), concurrency=5)
    table = make_table(Prices(plan.placement, plan.serving.rules.token_budget))
    weights = np.full(24, 1 / 24)
    counted = serve_closed_loop(
        plan, table._replace(step_s=0.0, sequence_s=1.0, prompt_s=0.0), trace
    )
    sums = sums_of(counted, trace.num_output, weights)
    own = table._replace(step_s=3e-3, sequence_s=2e-5, prompt_s=7e-3)
    served = serve_closed_loop(plan, own, trace)
    has_tpot = np.isfinite(served.tpot_s)
    expected = sums @ np.array([1.0, 3e-3, 2e-5, 7e-3])
    assert served.ttft_s.mean() == pytest.approx(expected[0], rel=1e-6)
    assert served.tpot_s[has_tpot].mean() == pytest.approx(expected[1], rel=1e-6)


def test_a_late_stream_shows_the_first_token_with_those_behind_it():
    """InferenceX's TensorRT-LLM for experts streams every tenth token, and releases before 1.2 hold
    the first one back too.
    """
    moe = {
        "backend": "trtllm",
        "model_path": "deepseek-ai/DeepSeek-V3",
        "system": "b200_sxm",
        "gemm_quant_mode": "nvfp4",
    }
    points = [
        read_point(row(**moe, backend_version=v, tp_size=8, id=name))
        for v, name in (("", POINT["id"]), ("1.2.0", POINT["id"]), ("", "a_c4_tp8"))
    ]
    models = [deployment_of(point).model for point in points]
    assert [stream_interval(point, model) for point, model in zip(points, models, strict=True)] == [
        10,
        1,
        1,
    ]
    dense = read_point(row(backend="trtllm", backend_version="", gemm_quant_mode="fp8"))
    assert stream_interval(dense, deployment_of(dense).model) == 1


def test_settings_of_inferencex_follow_its_scripts():
    """Prompts of 1,024 tokens wait for others on fewer than eight GPUs, where as many come out."""
    asked = {"backend": "trtllm", "backend_version": "", "isl": 1024}
    waits = [
        deployment_of(read_point(row(**asked, osl=osl, tp_size=tp))).spec.scheduling.get(
            "wait_steps", 0
        )
        for osl, tp in ((1024, 1), (1024, 4), (1024, 8), (8192, 1))
    ]
    assert waits == [20, 20, 0, 0]


@pytest.mark.measured
def test_every_row_is_read_and_a_sample_is_near():
    table = pd.read_csv(shared_file("measurements/serving_points.csv.gz"))
    assert set(COLUMNS) <= set(table.columns)
    _, refused = groups(table)
    assert not refused
    wanted = {"meta-llama/Llama-3.1-70B": 40, "Qwen/Qwen3-32B": 40, "Qwen/Qwen3-235B-A22B-FP8": 30}
    aggregated = table[table["mode"] == "agg"]
    sample = pd.concat(
        [
            aggregated[aggregated["model_path"] == m].sample(n, random_state=7)
            for m, n in wanted.items()
        ]
    )
    rows = score_rows("serving", sample, MEASURES, answer(sample.reset_index(drop=True), workers=1))
    assert is_answered(rows["status"]).mean() >= 0.9
    off = (rows["predicted"] / rows["measured"] - 1).abs()
    assert off[rows["quantity"] == "tpot"].median() < 0.12
    assert off[rows["quantity"] == "ttft"].median() < 0.30
    inside = (rows["low"] <= rows["measured"]) & (rows["measured"] <= rows["high"])
    assert 0.65 < inside.mean() < 0.95
