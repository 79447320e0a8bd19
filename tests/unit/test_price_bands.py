"""The error bands of a time are those of the calibration entries that priced it."""

import pytest

from simulator.deployment.fits import fits_of, list_unseen, price_key_of
from simulator.lab.validation.published._runs import make, parts_of, run_step
from simulator.planner.calibration_error import read_bands

SPREAD = {"attention_dp": 4, "ep": 4}


def band(plan, phase):
    (part,) = parts_of(plan, {phase: 1.0})
    return part.low, part.high


def around_one(*fits):
    return min(1.0, *(fit.band[0] for fit in fits)), max(1.0, *(fit.band[1] for fit in fits))


@pytest.mark.parametrize(
    ("model", "keys", "entry"),
    [
        ("dense", {}, "decode"),
        ("latent-moe", {}, "mla_decode"),
        ("latent-moe", {"kv_dtype": "fp8"}, "mla_decode_fp8"),
    ],
)
def test_attention_has_the_band_of_the_kernels_for_its_cache(tiny, model, keys, entry):
    plan = tiny.plan(model, **keys)
    known = plan.placement.calibration.attention
    assert band(plan, "attention") == around_one(known[entry])
    assert len({around_one(known[name]) for name in ("decode", "mla_decode")}) == 2


@pytest.mark.parametrize("operation", ["dispatch", "combine"])
def test_an_exchange_has_the_band_of_the_kernels_that_carry_it(tiny, operation):
    kinds = ("per_expert", "per_node", "deepep_auto", "all_gather")
    plans = {kind: tiny.plan("moe", dispatch={"kind": kind}, **SPREAD) for kind in kinds}
    found = {kind: band(plan, operation) for kind, plan in plans.items()}
    calibration = plans["per_node"].placement.calibration
    few, many = (calibration.exchange[name][operation] for name in ("low_latency", "normal"))
    gathering = {"dispatch": "all_gather", "combine": "reduce_scatter"}[operation]
    assert found == {
        "per_expert": around_one(few),
        "per_node": around_one(many),
        "deepep_auto": around_one(few, many),
        "all_gather": around_one(calibration.collective[gathering]),
    }
    assert found["per_expert"] != found["per_node"]


def test_experts_have_the_band_of_the_kernels_behind_their_exchange(tiny):
    found = {}
    for kind, kernels in (("per_expert", "low_latency"), ("per_node", "normal")):
        plan = tiny.plan("latent-moe", weight_dtype="fp8_block", dispatch={"kind": kind}, **SPREAD)
        found[kind] = band(plan, "experts")
        entry = f"{plan.placement.precision.experts}_{kernels}"
        assert found[kind] == around_one(plan.placement.calibration.grouped_gemm[entry])
    assert found["per_expert"] != found["per_node"]


def test_a_step_of_prompts_has_the_band_of_attention_over_prompts():
    deployment = {"model": "mixtral-8x7b", "cluster": "h200-sxm-1", "weight_dtype": "fp8"}
    prompts, decode = (run_step(make(deployment), 1, new, 512) for new in (256, 1))
    known = prompts.plan.placement.calibration.attention
    assert band(prompts.plan, "attention over prompts") == around_one(known["prefill"])
    assert around_one(known["prefill"]) != around_one(known["decode"])
    assert prompts.shares["attention over prompts"] > 0
    assert decode.shares["attention"] > 0


def test_latencies_of_pools_have_the_bands_of_pools(tiny):
    plan = tiny.plan("dense", prefill={"parallel": {"tp": 1}, "replicas": 1})
    engine, pools = plan.placement.calibration.engine, plan.placement.calibration.pools
    assert read_bands(plan, True) == (pools.band, pools.ttft_band, pools.source)
    assert list(list_unseen(plan)) == ["model"]
    widened = engine.widest_bands({"model"})
    assert read_bands(plan, False)[:2] == (widened.band, widened.ttft_band)
    assert pools.band not in (engine.band, widened.band)


def test_a_plan_is_priced_by_the_entries_of_its_key(tiny):
    plan = tiny.plan("latent-moe", kv_dtype="fp8", tp=2, attention_dp=2, ep=4)
    key = price_key_of(plan)
    assert (key.cache, key.is_latent, key.travels, key.is_split) == ("fp8", True, True, True)
    assert key.kernels == ("low_latency", "normal")
    assert fits_of(plan) == plan.placement.calibration.list_fits(key)
    assert not price_key_of(tiny.plan("dense")).is_latent
