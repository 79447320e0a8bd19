"""What is left out of a fit has no part in its answers."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.config.calibration import ANY, load_calibration
from simulator.lab.calibration.left_out import Simulated, answer_stranger, list_strangers
from simulator.lab.calibration.serving import engine
from simulator.lab.calibration.serving.engine import band_of_unseen
from simulator.lab.validation import serving
from simulator.lab.validation.suites import SERVING

LEAST_ROWS = 20


def make_points(num=LEAST_ROWS, models=("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b")):
    """Points whose steps take 10 ms of kernels and an engine's 2 ms, on two GPUs."""
    names = [(model, gpu) for model in models for gpu in ("h100-sxm", "h200-sxm")]
    rows = [name for name in names for _ in range(num)]
    rng, count = np.random.default_rng(1), len(rows)
    parts = np.zeros((count, 2, 5))
    parts[:, :, 0], parts[:, :, 1], parts[:, 0, 3] = 0.01, 1.0, 1.0
    measured = (0.012 + np.array([0.05, 0.0])) * rng.uniform(0.9, 1.1, (count, 2))
    models, gpus = (np.array(column, dtype=object) for column in zip(*rows, strict=True))

    def same(text):
        return np.full(count, text, dtype=object)

    return engine.Points(
        *(np.arange(count), same("vllm"), same("0.12.0"), models, gpus, same("hopper")),
        *(parts, measured, models, np.zeros(count, dtype=bool), np.full((count, 3), 8.0)),
    )


def test_a_refit_does_not_see_the_rows_of_its_group():
    points = make_points()
    held = points.model == "qwen3-32b"
    fitted = Simulated(points, []).leave_out(held).fit()
    for factor in (5.0, 0.01):
        changed = points.measured * np.where(held, factor, 1.0)[:, None]
        again = Simulated(replace(points, measured=changed), []).leave_out(held).fit()
        assert again == fitted, "neither a coefficient nor a band"
    others = points.measured * np.where(held, 1.0, 5.0)[:, None]
    assert Simulated(replace(points, measured=others), []).leave_out(held).fit() != fitted


def test_bands_of_what_is_unseen_are_of_whole_groups():
    rng = np.random.default_rng(3)
    middles = np.array([0.8, 1.0, 1.3])
    names = np.repeat(["a", "b", "c"], 500)
    ratios = np.repeat(middles, 500) * np.exp(rng.normal(0.0, 0.02, 1500))
    low, high = band_of_unseen(1 / ratios, names, LEAST_ROWS)
    pooled = np.quantile(ratios, [0.1, 0.9])
    assert low < pooled[0]
    assert high > pooled[1]
    alike = band_of_unseen(1 / np.exp(rng.normal(0.0, 0.02, 1500)), names, LEAST_ROWS)
    assert alike == pytest.approx((np.exp(-0.0256), np.exp(0.0256)), rel=0.01)
    few = np.where(names == "a", "a", "b")
    few[:5] = "rare"
    assert band_of_unseen(1 / ratios, few, LEAST_ROWS) is not None
    assert band_of_unseen(1 / ratios, few, 1200) is None, "one group says nothing of another"


def test_a_release_is_new_where_points_do_not_say_theirs():
    engines = load_calibration("blackwell", "test").engine
    assert engines["vllm"].models
    assert not engines["vllm"].releases
    row = {"id": "x_c4_tp1", "model_path": "meta-llama/Llama-3.1-70B", "system": "b200_sxm"}
    row |= {"mode": "agg", "isl": 1024, "osl": 128, "gemm_quant_mode": "fp8", "tp_size": 1}
    said = [("vllm", "0.12.0"), ("vllm", ""), ("trtllm", "1.2.0"), ("trtllm", "1.3.0")]
    rows = [row | {"backend": engine, "backend_version": version} for engine, version in said]
    found = serving.answer(pd.DataFrame(rows), workers=1)
    new = [f"no serving points of {engine} {version} were fitted" for engine, version in said]
    assert [words in status for words, status in zip(new, found.status, strict=True)] == [
        *(True, False, False, True)
    ]
    low, high = engines[ANY].unseen["release"].ttft_band
    assert found.high[0, 0] / found.low[0, 0] >= high / low * (1 - 1e-9)


POINT = (
    "2026_04_06_x_{gpu}_c4_tp1_ep1,vllm,0.12.0,meta-llama/Llama-3.1-8B-Instruct,"
    "{gpu},agg,128,32,fp8,1,20,5"
)


@pytest.mark.slow
def test_every_row_is_of_one_group_of_each_case_and_a_new_gpu_has_no_kernels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heads = "id,backend,backend_version,model_path,system,mode,isl,osl,gemm_quant_mode,tp_size"
    table = tmp_path / "points.csv"
    points = [POINT.format(gpu=gpu) for gpu in ("h100_sxm", "h200_sxm", "b200_sxm")]
    wrong = POINT.format(gpu="h100_sxm").replace(",agg,", ",?,")
    lines = [f"{heads},silicon_ttft_ms,silicon_tpot_ms", *points, wrong]
    table.write_text("\n".join(lines))
    strangers = list(list_strangers(SERVING, table))
    for case in ("model", "gpu", "release"):
        held = np.array([one.held for one in strangers if one.case == case])
        assert held.sum(axis=0).tolist() == [1] * 4
    kernels = {one.name: one.kernels for one in strangers if one.case == "gpu"}
    assert kernels["h100-sxm"] == {"hopper": "blackwell"}
    assert kernels["b200-sxm"] == {"blackwell": "hopper"}
    assert kernels["h200-sxm"] == {}, "its kernels were never timed"
    seen = Simulated(make_points(), [])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        found = {
            one.name: pool.submit(answer_stranger, one._replace(seen=seen)).result()
            for one in strangers
            if one.name in ("b200-sxm", "unreadable") and one.case == "gpu"
        }
    assert found["unreadable"]["status"].str.startswith("unsupported").all()
    new = found["b200-sxm"].set_index("quantity")
    assert "no serving points on" in new.loc["tpot", "status"]
    assert new.loc["ttft", "rival"] == ""
    assert new.loc["tpot", "rival"]
    assert set(new["without"]) == {"b200-sxm"}
