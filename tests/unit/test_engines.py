"""What engines start with by themselves, by release, memory of a GPU and usage, and what they
refuse to start with.
"""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.commands.check import check as check_file
from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import load_calibration
from simulator.config.calibration.engine import UNSAID, find_engine_key
from simulator.config.capacity import Question
from simulator.config.engine import (
    EngineSpec,
    find_engine,
    find_offering,
    name_release,
    resolve_scheduling,
)
from simulator.deployment.fits import find_bands, list_unseen
from simulator.deployment.notes import notes_of
from simulator.deployment.plan import make_plan
from simulator.engine.timeline import serve
from simulator.planner.explore import ClusterSize, deployment
from simulator.planner.space import Ruled, Space
from simulator.workload.traces import RequestTrace
from tests.laws.tiny_question import QUESTION, candidate
from tests.parts import freeze


def resolve(engine, accelerator, attention_dp=1, usage="server", **asked):
    return resolve_scheduling(
        asked or None, engine, load_accelerator(accelerator, "test"), attention_dp, usage
    )


@pytest.mark.parametrize("name", sorted(available_files("cluster_configs/engines")))
def test_every_file_is_right_and_names_the_source_of_what_it_says(name):
    path = available_files("cluster_configs/engines")[name]
    assert check_file(str(path), []).kind == "engine"
    engine, _, release = name.partition("-")
    found = find_engine(f"{engine}@{release}")
    assert (found.engine, found.release) == (engine, release)
    assert {"scheduling", "tiers"} <= found.sources.keys()


@pytest.mark.parametrize(
    ("accelerator", "usage", "tokens", "sequences"),
    [
        ("b200-sxm", "server", 16384, 1024),
        ("h200-sxm", "server", 8192, 1024),
        ("h100-sxm", "server", 8192, 1024),
        ("h100-sxm", "offline", 16384, 1024),
        ("a100-sxm", "server", 2048, 256),
        ("a100-sxm", "offline", 8192, 256),
        ("l40s", "server", 2048, 256),
    ],
)
def test_vllm_by_memory_and_usage(accelerator, usage, tokens, sequences):
    """The table of ``get_batch_defaults`` in vLLM 0.28's ``arg_utils.py``."""
    found = resolve("vllm@0.28.0", accelerator, usage=usage)
    assert (found["token_budget"], found["max_sequences"]) == (tokens, sequences)


def test_a_release_is_that_of_the_newest_file_that_is_not_newer():
    assert resolve("vllm@0.18.2", "b200-sxm")["reserve_full_isl"] is False
    assert resolve("vllm@0.22.0", "b200-sxm")["reserve_full_isl"] is True
    assert resolve("vllm@0.22.0", "b200-sxm")["token_budget"] == 8192
    assert resolve("vllm@0.30.1", "b200-sxm") == resolve("vllm@0.29.0", "b200-sxm")
    assert find_engine("vllm@0.6.3").release == "0.10.0", "the oldest that is known"


def make(model, cluster, engine, parallel, **keys):
    table = {"name": "it", "model": model, "cluster": cluster, "engine": engine, **keys}
    table["parallel"] = parallel
    return freeze(table).serving


def test_sglang_lets_more_run_where_the_cache_holds_many_contexts():
    """``min(max(int(tokens / context * 512), 2048), 4096)`` of its own cache."""
    small = make("qwen3-8b", "h100-sxm-1", "sglang", {})
    assert small.capacity.tokens / 40_960 * 512 > 4096
    assert small.rules.max_sequences == 4096
    middle = make("qwen3-8b", "h100-sxm-1", "sglang", {}, memory_fraction=0.55)
    assert middle.rules.max_sequences == int(middle.capacity.tokens / 40_960 * 512)
    assert 2048 < middle.rules.max_sequences < 4096
    made = freeze({"name": "it", "model": "qwen3-8b", "cluster": "h100-sxm-1", "engine": "sglang"})
    assert made.spec.scheduling["max_sequences"] == 4096, "what it says is what it does"
    asked = {"kind": "prefill_first", "max_sequences": 300}
    assert make("qwen3-8b", "h100-sxm-1", "sglang", {}, scheduling=asked).rules.max_sequences == 300


def test_sglang_keeps_room_for_graphs_of_all_data_parallel_ranks():
    """By ``server_args.py`` of 0.5.4: the chunk before it is divided, and graphs of 512 sequences
    times 8 ranks, 3 MiB and half as much again. DeepSeek-V3 keeps some 12 GiB a rank.
    """
    split = {"attention_dp": 8, "ep": 8}
    found = make("deepseek-v3", "h200-sxm-8", "sglang@0.5.4", split)
    reserved_mib = 512 + 8192 * 1.5 + 512 * 2 + 8 / 8 * 1024 + 512 * 8 * (3 + 1.5)
    total_mib = found.capacity.total_bytes / 2**20
    assert found.capacity.share == pytest.approx(1 - reserved_mib / total_mib, abs=6e-4)
    assert found.capacity.kv_bytes / 2**30 == pytest.approx(11.7, rel=0.05)
    with pytest.raises(UserError, match=r"memory_fraction = 0\.8"):
        make("deepseek-v3", "h100-sxm-32", "sglang", {"attention_dp": 32, "ep": 32})


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("cluster", ["h100-sxm-8", "b200-sxm-8", "l40s-8", "rtx-pro-6000-8"])
def test_a_name_without_a_release_is_the_release_it_stands_for(tiny, engine, cluster):
    """To the last bit, in what is served and in what is priced."""
    release = name_release(engine)
    assert release.startswith(f"{engine}@")
    found = []
    for name in (engine, release):
        plan = tiny.plan("dense", engine=name, cluster=cluster)
        requests = serve(plan, tiny.trace(30, 50.0)).requests
        found.append((requests, plan.placement.calibration.engine, plan.serving))
    pd.testing.assert_frame_equal(found[0][0], found[1][0], check_exact=True)
    assert found[0][1:] == found[1][1:]


def test_a_release_without_points_is_priced_as_the_nearest_that_has_some():
    fits = load_calibration("hopper", "test").engine
    for name, key in (
        ("vllm@0.9.0", "vllm@0.12.0"),
        ("vllm", "vllm@0.12.0"),
        ("sglang@0.5.0", "sglang@0.5.1"),
        ("sglang@0.5.8", "sglang@0.5.6"),
        ("sglang", "sglang@0.5.9"),
        ("trtllm@1.0.3", "trtllm@1.0.0"),
        ("trtllm@0.9.0", "trtllm@0.0.0"),
        (f"vllm@{UNSAID}", "vllm"),
    ):
        assert find_engine_key(tuple(fits), name_release(name)) == key


def test_sglang_splits_a_step_over_data_parallel_ranks_and_trusts_short_outputs_there():
    alone, spread = (resolve("sglang", "h200-sxm", attention_dp=dp) for dp in (1, 8))
    assert (alone["token_budget"], spread["token_budget"]) == (8192, 1024)
    assert "conservativeness" not in alone
    assert spread["conservativeness"] == 0.3


def test_what_a_deployment_names_holds_and_the_rest_is_the_engines():
    found = resolve("vllm@0.28.0", "h100-sxm", max_sequences=64)
    assert (found["max_sequences"], found["token_budget"]) == (64, 8192)
    other = {"kind": "prefill_first", "max_sequences": 64}
    assert resolve("vllm", "h100-sxm", **other) == other


def test_an_engine_file_that_could_not_be_used_is_refused():
    path = available_files("cluster_configs/engines")["sglang-0.5.0"]
    table = tomllib.loads(path.read_text())
    for wrong, said in (
        ({"scheduling": {"max_sequences": 8}}, "names no policy"),
        ({"tiers": [{"server": {"max_sequences": 8}}]}, "token_budget, which a tier lacks"),
        ({"tiers": table["tiers"][:1]}, "end with one that holds for every GPU"),
    ):
        with pytest.raises(UserError, match=said):
            validate(EngineSpec, {**table, **wrong}, "test")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_a_plan_gives_prompts_of_their_own_pool_the_batching_of_its_engine(engine):
    models = [{"model": "llama-3.1-8b", "engine": engine}]
    space = Space(validate(Question, {**QUESTION, "models": models}, "test"), Path())
    pooled = candidate(0, prefill=candidate(0).shape)
    spec = deployment(space, pooled, ClusterSize(0, 1, 1))
    plan = make_plan(spec, 0, "test", Path())
    alone = make_plan(space.spec(pooled.shape, pooled.budget), 0, "test", Path())
    assert plan.prefill.serving.rules == alone.serving.rules._replace(
        steps_ahead=int(engine != "trtllm")  # whose context servers cannot
    )
    assert plan.prefill.serving.rules.splits_prompts != (engine == "trtllm")


@pytest.mark.parametrize(
    ("what", "engine", "others"),
    [
        ("exchange_chunks", "vllm", []),
        ("two_batch", "sglang", None),
        ("two_batch", "trtllm", ["SGLang", "vLLM"]),
        ("two_batch", "vllm@0.10.0", ["SGLang", "vLLM"]),
        ("two_batch", "mine", None),
    ],
)
def test_an_engine_offers_what_its_release_or_an_earlier_one_did(what, engine, others):
    assert find_offering(what, engine) == others


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("cluster", ["h100-sxm-8", "b200-sxm-8"])
def test_a_release_without_points_has_bands_that_hold_both_prices(cluster, model, engine):
    """Priced as the nearest release and as all releases together, to 10 % of a band's end."""
    table = {"name": "x", "model": model, "cluster": cluster, "engine": engine, "replicas": 1}
    plan = freeze(table, 1)
    placement, unseen = plan.placement, list_unseen(plan)
    every = load_calibration(placement.accelerator.calibration, "test").engine[engine]
    if "release" not in unseen:
        return  # priced as all together: there is one price
    trace = RequestTrace(np.arange(32) * 0.5, np.full(32, 1000), np.full(32, 100), provenance="x")
    seconds = []
    for fit in (placement.calibration.engine, every):
        priced = replace(
            placement, calibration=placement.calibration.model_copy(update={"engine": fit})
        )
        rows = serve(replace(plan, placement=priced), trace).requests_table()
        ttft = (rows["first_token_s"] - rows["arrival_s"]).median()
        seconds.append((ttft, (rows["finish_s"] - rows["first_token_s"]).median()))
    bands = find_bands(placement.calibration.engine, unseen)
    for nearest, together, (low, high) in zip(*seconds, (bands.ttft_band, bands.band), strict=True):
        assert 0.9 * low <= together / nearest <= 1.1 * high


def test_a_plan_takes_a_larger_share_where_the_engine_s_own_leaves_no_room():
    """SGLang's reserve for graphs under attention DP on 80 GB, which is started with
    ``--mem-fraction-static`` there.
    """
    asked = QUESTION | {
        "models": [{"model": "deepseek-v3", "engine": "sglang"}],
        "space": QUESTION["space"] | {"attention_dp": [16], "max_gpus_per_replica": 16},
    }
    space, ruled = Space(validate(Question, asked, "test"), Path()), Ruled()
    [found, *_] = space.shapes(0, 0, ruled)
    shape, plan = found
    assert (shape.memory_fraction, plan.spec.memory_fraction) == (0.8, 0.8)
    spec = deployment(space, candidate(0)._replace(shape=shape), ClusterSize(16, 1, 0))
    again = make_plan(spec, 1, "test", Path())
    assert again.serving.capacity.tokens == plan.serving.capacity.tokens > 0
    table = spec.model_dump(exclude={"memory_fraction"}, exclude_defaults=True)
    with pytest.raises(UserError, match=r"memory_fraction = 0\.8"):
        freeze(table, 1)


QWEN = {"model": "qwen3-235b-a22b", "cluster": "h200-sxm-8", "weight_dtype": "fp8_block"}


def plan(parallel, **keys):
    table = {"name": "x", **QWEN, "parallel": parallel, **keys}
    return freeze(table)


PARTS = "192 of 1,536 columns a rank are no multiple of 128.*tp = 4 does; ep = 8 does$"
DENSE_PARTS = "'ffn down' over 32 ranks: 576 of 18,432 columns.*; tp = 16 with ep = 16 does$"
R1 = {"model": "deepseek-r1", "cluster": "h200-sxm-32"}
ON_A100 = {"model": "deepseek-v3", "cluster": "a100-sxm-32", "weight_dtype": "int4"}
LLAMA = {"model": "llama-3.1-70b", "weight_dtype": "bf16", "cluster": "h200-sxm-16"}
SPREAD, R1_SPREAD = (
    {"attention_dp": 24, "ep": 24},
    {"model": "deepseek-v3", "cluster": "h200-sxm-24"},
)
SLOTS = {"placement": {"kind": "eplb", "num_slots": 264}}


@pytest.mark.parametrize(
    ("parallel", "keys", "said"),
    [
        # Qwen3-235B at TP 8: 1,536 / 8 = 192 (vLLM #17569).
        *(
            ({"tp": 8}, {"engine": engine}, PARTS)
            for engine in ("vllm@0.10.2", "vllm@0.19.0", "vllm@0.28.1", "sglang")
        ),
        # DeepSeek's dense blocks over 32 ranks, 18,432 / 32 = 576 (SGLang #3345).
        ({"tp": 32, "ep": 32}, {**R1, "engine": "vllm"}, DENSE_PARTS),
        ({"tp": 32, "ep": 32}, {**R1, "engine": "sglang"}, DENSE_PARTS),
        (
            {"tp": 8},
            {"engine": "trtllm", "cluster": "l40s-8", "model": "llama-3.1-70b"},
            "hopper, blackwell",
        ),
        ({"tp": 8}, {"engine": "trtllm", "cluster": "mi300x-8"}, "it runs on ampere"),
        ({"tp": 8}, {**ON_A100, "kv_dtype": "fp8"}, 'kv_dtype = "bf16" does$'),
        (SPREAD, {**R1_SPREAD, "engine": "sglang"}, "num_slots = 264 } does"),
        (SPREAD, {**R1_SPREAD, "engine": "trtllm"}, "num_slots = 264 } does"),
    ],
)
def test_a_split_that_an_engine_cannot_start_with_is_refused_with_one_that_does(
    parallel, keys, said
):
    with pytest.raises(UserError, match=said):
        plan(parallel, **keys)


@pytest.mark.parametrize(
    ("parallel", "keys"),
    [
        ({"tp": 4}, {"engine": "vllm@0.10.2"}),
        ({"tp": 8, "ep": 8}, {"engine": "sglang"}),
        ({"tp": 8}, {"engine": "sglang", "weight_dtype": "fp8"}),
        ({"tp": 16, "ep": 16}, {**R1, "engine": "vllm"}),
        ({"tp": 8}, ON_A100),
        ({"tp": 16}, LLAMA),  # 8 KV heads, repeated
        ({"tp": 8, "attention_dp": 1}, {**LLAMA, "engine": "sglang"}),
        (SPREAD, R1_SPREAD),  # vLLM spreads 256 unevenly
        (SPREAD, {**R1_SPREAD, **SLOTS, "engine": "trtllm"}),
    ],
)
def test_what_an_engine_starts_with_is_taken(parallel, keys):
    plan(parallel, **keys)


def test_later_releases_refine_the_scales_and_the_note_says_what_that_takes():
    notes = {one.kind: one.facts for one in notes_of(plan({"tp": 8}, engine="vllm@0.29.0"))}
    assert notes["note.refined_blocks"] == {"plan": "x", "width": 192, "block": 64}
    whole = notes_of(plan({"tp": 4}, engine="vllm"))
    assert "note.refined_blocks" not in {one.kind for one in whole}
    assert plan({"tp": 8}).spec.engine == name_release("vllm"), "the newest release is the default"
