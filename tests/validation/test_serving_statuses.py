"""What a user of serving points is told: what was taken from an id or guessed, and what lies
outside the points that were fitted.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.config.calibration import load_calibration
from simulator.config.deployment import DeploymentSpec
from simulator.deployment import fits
from simulator.deployment.facts import warnings_of
from simulator.deployment.plan import make_plan
from simulator.lab.validation.serving import answer, deployments
from simulator.lab.validation.serving.deployments import deployment_of, plan_of, table_key
from simulator.lab.validation.serving.points import UnreadableError, read_point

POINT = {
    "id": "x_c4_tp1",
    "backend": "vllm",
    "backend_version": "0.12.0",
    "model_path": "meta-llama/Llama-3.1-8B-Instruct",
    "system": "h100_sxm",
    "mode": "agg",
    "isl": 256,
    "osl": 64,
    "gemm_quant_mode": "fp8",
    "tp_size": 1,
}
DATED = "2026_04_06_llama_3_1_8b_h100_sxm_vllm_fp8_agg_128x32_c4_tp1_ep1_1"
DEEPSEEK = {
    "id": "2026_04_06_dsr1_h200_sxm_trtllm_fp8_agg_1024x1024_c4_tp8_ep8_1",
    "backend": "trtllm",
    "backend_version": "1.1.0rc2",
    "model_path": "deepseek-ai/DeepSeek-R1",
    "system": "h200_sxm",
    "tp_size": 8,
    "moe_ep_size": 8,
}


def answered(*rows):
    return answer(pd.DataFrame([POINT | row for row in rows]), workers=1)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Fits that say that they have seen this very point, at other releases and loads up to 512
    requests in flight too.
    """
    shipped = load_calibration("hopper", "test")
    seen = {
        "models": ("llama-3.1-8b",),
        "gpus": ("h100-sxm",),
        "releases": ("0.12.0", "0.14.0"),
        "domain": {"isl": (128, 4096), "osl": (32, 1024), "concurrency": (1, 512)},
    }
    engine = {name: fit.model_copy(update=seen) for name, fit in shipped.engine.items()}
    family = shipped.model_copy(update={"engine": engine})
    monkeypatch.setattr(deployments, "load_family", lambda _: family)
    monkeypatch.setattr(fits, "load_any_calibration", lambda *_: family)
    monkeypatch.setattr(fits, "_list_models", lambda: frozenset(seen["models"]))


def test_columns_come_before_what_an_id_suggests():
    assert (read_point(POINT | {"id": DATED}).shortest, read_point(POINT).shortest) == (0.8, 1.0)
    assert read_point(POINT | {"id": DATED, "length_range": 1}).shortest == 1.0
    assert read_point(POINT | {"length_range": "0.5"}).shortest == 0.5
    assert read_point(POINT | {"concurrency": "64"}).concurrency == 64
    assert read_point(POINT | {"concurrency": ""}).concurrency == 4
    drafted = {
        said: read_point(POINT | {"speculative": said}).drafted
        for said in ("true", "False", "0", 2, "", np.nan)
    }
    assert list(drafted.values()) == [3, 0, 0, 2, None, None]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("length_range", value) for value in ("80 %", 1.5, 0)),
        *(("concurrency", value) for value in ("many", 0)),
        *(("speculative", value) for value in ("maybe", -1, 99)),
    ],
)
def test_what_such_a_column_cannot_mean_is_refused(column, value):
    with pytest.raises(UnreadableError, match=f"^{column} '"):
        read_point(POINT | {column: value})


def test_shorter_requests_take_less_time_and_the_id_is_not_needed():
    equal, ranged, by_id = answered(
        {}, {"length_range": 0.8}, {"id": "x_tp1", "concurrency": 4}
    ).seconds
    assert ranged[0] < equal[0]
    np.testing.assert_array_equal(by_id, equal)


def test_what_was_fitted_is_ok_and_what_was_not_says_so():
    found = answered(
        {},
        {"model_path": "Qwen/Qwen3-8B"},
        {"system": "h200_sxm"},
        {"backend_version": "0.19.1"},
        {"concurrency": 600},
        {"isl": 64, "osl": 16},
        {"backend_version": ""},
    )
    assert np.isfinite(found.seconds).all(), "new models keep their answers"
    reasons = [
        "",
        "Qwen3-8B",
        "H200",
        "vllm 0.19.1",
        "concurrency outside",
        "input length, output length outside",
        "",
    ]
    for status, reason in zip(found.status, reasons, strict=True):
        assert (status == "ok") == (reason == "")
        assert reason in status
        assert status.startswith("extrapolated: ") or not reason
    width = found.high[:, 1] / found.low[:, 1]
    every = load_calibration("hopper", "test").engine["any"]
    for place, kind in ((1, "model"), (3, "release")):
        assert width[place] >= width[0] * (1 - 1e-9)
        low, high = every.unseen[kind].band
        assert width[place] >= high / low * (1 - 1e-9), "of whole groups that were left out"
    assert width[4] > width[0]


def test_guessed_drafts_say_so_and_said_ones_are_taken():
    guessed, said, without, two = answered(
        *(
            DEEPSEEK | more
            for more in ({}, {"speculative": "true"}, {"speculative": "false"}, {"speculative": 2})
        )
    ).seconds[:, 1]
    assert guessed == said
    assert said < two < without
    status = answered(
        DEEPSEEK, DEEPSEEK | {"speculative": "true"}, DEEPSEEK | {"speculative": 2}
    ).status
    assert "drafts guessed from the release" in status[0]
    assert "draft" not in status[1]
    assert "what drafts of 2 tokens save is assumed" in status[2]


@pytest.mark.parametrize("speculative", ["false", "true", 2])
def test_points_are_served_with_the_engines_own_drafts(speculative):
    point = read_point(POINT | DEEPSEEK | {"speculative": speculative})
    plan = plan_of(table_key(point))
    assert plan.placement.drafts.num_tokens == point.drafted
    budget = deployment_of(point).spec.scheduling["token_budget"]
    decode_tokens = point.concurrency * (1 + point.drafted)
    assert budget >= decode_tokens + point.num_input, "a prompt fits beside all drafts"


def test_pipelines_with_drafts_are_refused_as_run_refuses_them():
    pipeline = {"speculative": "true", "tp_size": 4, "moe_ep_size": 4, "pp_size": 2}
    (status,) = answered(DEEPSEEK | pipeline).status
    assert status.startswith("unsupported: ")
    assert "drafts in a pipeline are not simulated" in status


def test_an_early_release_is_not_called_an_unmeasured_gpu():
    (status,) = answered({"backend": "trtllm", "backend_version": "0.17.0"}).status
    assert "the own time of trtllm 0.17.0 is assumed" in status
    assert "H100" not in status
    spec = DeploymentSpec(
        name="early", model="llama-3.1-8b", cluster="h100-sxm-8", engine="trtllm@0.17.0"
    )
    (warning,) = warnings_of(make_plan(spec, 0, "test", Path()))
    assert (warning.kind, warning.facts["engine"]) == ("warning.release", "trtllm 0.17.0")


def test_shipped_fits_name_models_that_there_are():
    for fit in (
        fit
        for name in ("hopper", "blackwell")
        for fit in load_calibration(name, "test").engine.values()
    ):
        assert all((Path("workloads/models") / f"{model}.toml").is_file() for model in fit.models)
