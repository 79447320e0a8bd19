"""Disaggregated serving points: laws of the two pools, and how far off predictions are.

Points: NVIDIA aiconfigurator-core 0.12.0, Apache-2.0. Each limit leaves about a quarter more than
was seen when the pools were fitted.
"""

import numpy as np
import pandas as pd
import pytest

from simulator.config.deployment import PrefillPoolSpec
from simulator.config.engine import KVTransfer
from simulator.cost.transfer import make_transfer
from simulator.engine import timeline as engine
from simulator.lab.validation import OK
from simulator.lab.validation.serving import answer
from simulator.lab.validation.serving.answer import _alone, half_of, open_pools
from simulator.lab.validation.serving.campaigns import load_campaigns
from simulator.lab.validation.serving.disagg import Load, serve
from simulator.lab.validation.serving.load import trace_of, weights_of
from simulator.lab.validation.serving.points import read_point
from simulator.policies.speculation import Drafts
from tests.parts import change_plan
from tests.shared import shared_file

POINT = {
    "id": "llama_3_1_8b_h100_sxm_vllm_disagg_1024x64_c8_cfg1",
    "backend": "vllm",
    "backend_version": "0.12.0",
    "model_path": "meta-llama/Llama-3.1-8B-Instruct",
    "system": "h100_sxm",
    "mode": "disagg",
    "isl": 1024,
    "osl": 64,
    "gemm_quant_mode": "fp8",
    "prefill_tp_size": 1,
    "prefill_num_workers": 1,
    "decode_tp_size": 1,
    "decode_num_workers": 2,
}


def row(**changes):
    return {**POINT, **changes}


def answered(*rows):
    return answer(pd.DataFrame(rows), workers=1)


def test_more_workers_never_make_it_slower():
    ttft, tpot = answered(row(), row(prefill_num_workers=2), row(decode_num_workers=4)).seconds.T
    assert ttft[1] < ttft[0]
    assert tpot[2] < tpot[0]


def test_more_requests_in_flight_wait_longer():
    few, many = answered(row(), row(id=POINT["id"].replace("_c8_", "_c64_"))).seconds
    assert (many > few).all()


def test_a_step_with_drafts_gives_no_more_than_they_keep():
    drafting, without = answered(row(speculative="true"), row(speculative="false")).seconds
    known = load_campaigns()["inferencex"].drafts
    most_kept = Drafts((known.accepted,) * known.tokens).mean_kept
    assert without[1] / most_kept < drafting[1] < without[1]
    assert drafting[0] == pytest.approx(without[0], rel=0.2), "nothing decodes in the prefill pool"


def test_bands_hold_that_workers_which_are_not_said_are_enough():
    unsaid = {"prefill_num_workers": None, "decode_num_workers": None}
    crowd = POINT["id"].replace("_c8_", "_c2048_")
    taken = answered(row(**unsaid), row(id=crowd, **unsaid))
    many = answered(row(id=crowd, prefill_num_workers=32, decode_num_workers=32))
    few_share, crowd_share = taken.low[:, 0] / taken.seconds[:, 0]
    assert crowd_share < few_share
    assert taken.low[1, 0] <= many.seconds[0, 0] <= taken.high[1, 0]


def test_what_the_table_does_not_say_is_said():
    said, unsaid = answered(row(), row(prefill_num_workers=None, decode_num_workers=None)).status
    assert "how many workers" not in said
    assert unsaid.startswith("extrapolated: ")
    assert "the table does not say how many workers there are" in unsaid


def test_half_of_what_was_asked_is_not_taken_for_all():
    assert (
        answered(row(prefill_num_workers=None)).status
        == answered(row(decode_num_workers=None)).status
    )
    assert "less than one" in answered(row(prefill_num_workers=0)).status[0]
    assert np.isfinite(
        answered(row(prefill_num_workers=1e9), row(decode_num_workers=1e9)).seconds
    ).all()


def test_models_without_points_have_wider_bands():
    """Pools were fitted on points of one model."""
    found = answered(row())
    assert found.status[0] != OK
    assert found.high[0, 1] > found.seconds[0, 1] * 1.1


@pytest.mark.parametrize(
    ("dp", "ep", "kernels"), [(8, 8, "deepep_auto"), (1, 8, "per_rank"), (8, 1, "per_rank")]
)
def test_sglang_reaches_experts_of_data_parallel_ranks_by_deepep(dp, ep, kernels):
    changes = {
        "backend": "sglang",
        "backend_version": "0.5.8",
        "model_path": "deepseek-ai/DeepSeek-V3",
        "system": "h200_sxm",
    }
    split = {
        f"decode_{name}": size
        for name, size in (("tp_size", 8 // dp), ("attention_dp_size", dp), ("moe_ep_size", ep))
    }
    point = read_point(row(**changes, **split, decode_moe_tp_size=8 // ep))
    assert half_of(_alone(point, point.decode)).plan.spec.dispatch == {"kind": kernels}


def test_pools_agree_with_the_engines_own():
    """What is served step by step here, with one time for decoding, against every step of both
    pools as an event.
    """
    point = read_point(row(osl=256, id=POINT["id"].replace("_c8_", "_c24_")))
    prefill, decode = (half_of(_alone(point, pool)) for pool in (point.prefill, point.decode))
    clusters, layouts = (
        (prefill.plan.placement.cluster, decode.plan.placement.cluster),
        (prefill.plan.placement.layout, decode.plan.placement.layout),
    )
    transfer = make_transfer(
        PrefillPoolSpec(),
        clusters,
        layouts,
        decode.plan.serving.capacity.cache,
        3,
        decode.plan.placement.model.num_layers,
        KVTransfer(),
    )
    plan = change_plan(decode.plan, prefill=prefill.plan, transfer=transfer, replicas=2)
    trace = trace_of(point)
    tables = {"prefill steps": prefill.table, "steps": decode.table}
    both = engine.serve(plan, trace, fill=lambda pool, stream: tables[stream])
    found, prompts = both.requests_table(), both.pools["prefill"].requests.each
    weights = weights_of(len(found), point.concurrency, 10)
    # The time in the prefill pool: less what the cache's way and the next step there take.
    prompt_s = prompts.first_s - prompts.arrival_s
    tpot_s = (
        (found["finish_s"] - found["first_token_s"]) / (found["num_output"] - 1)
    ).to_numpy() @ weights
    served = serve(open_pools(point, point.prefill, 1)[0], Load.from_point(point), 1.0)
    assert served.in_pool_s == pytest.approx(prompt_s @ weights, rel=0.15)
    assert served.token_s == pytest.approx(tpot_s, rel=0.05)


LIMITS = {  # median of the absolute error in TTFT and TPOT
    "says its workers": (0.50, 0.15),
    "does not": (0.80, 0.17),
}


@pytest.mark.measured
@pytest.mark.parametrize("which", LIMITS)
def test_points_are_within_the_errors_of_the_fit(which):
    table = pd.read_csv(shared_file("measurements/serving_points.csv.gz"))
    says = table["decode_num_workers"].notna()
    rows = table[
        (table["mode"] == "disagg")
        & (table["backend"] == "trtllm")
        & (says if which == "says its workers" else ~says)
    ]
    rows = rows[rows["system"] == "h200_sxm"].iloc[::3].reset_index(drop=True)
    off = np.abs(
        answered(*rows.to_dict("records")).seconds
        / (rows[["silicon_ttft_ms", "silicon_tpot_ms"]].to_numpy() / 1e3)
        - 1
    )
    assert (np.median(off, axis=0) <= LIMITS[which]).all(), np.median(off, axis=0)
