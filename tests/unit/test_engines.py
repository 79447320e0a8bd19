"""What engines start with by themselves, by release, memory of a GPU and usage."""

import tomllib
from pathlib import Path

import pytest

from simulator.base.data import available_files
from simulator.commands.check import check_file
from simulator.commands.run import notes_on
from simulator.config.accelerator import load_accelerator
from simulator.config.engine import find_engine, resolve_scheduling
from simulator.deployment.plan import make_plan
from simulator.scenario.scenario import load_scenario


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
    found = resolve("vllm", accelerator, usage=usage)
    assert (found["token_budget"], found["max_sequences"]) == (tokens, sequences)


def test_a_release_is_that_of_the_newest_file_that_is_not_newer():
    assert resolve("vllm@0.18.2", "b200-sxm")["reserve_full_isl"] is False
    assert resolve("vllm@0.22.0", "b200-sxm")["reserve_full_isl"] is True
    assert resolve("vllm@0.22.0", "b200-sxm")["token_budget"] == 8192
    assert resolve("vllm@0.30.1", "b200-sxm") == resolve("vllm", "b200-sxm")
    assert find_engine("vllm@0.6.3").release == "0.10.0", "the oldest that is known"


def test_each_engine_has_its_own_scheduler():
    assert resolve("sglang", "h100-sxm")["kind"] == "prefill_first"
    assert resolve("trtllm", "h100-sxm") == {
        "kind": "no_evict",
        "chunked_prompts": False,
        "token_budget": 8192,
        "max_sequences": 2048,
    }
    assert resolve("mine", "h100-sxm") == {"kind": "chunked"}


def test_sglang_splits_a_step_over_data_parallel_ranks_and_trusts_short_outputs_there():
    alone, spread = (resolve("sglang", "h200-sxm", attention_dp=dp) for dp in (1, 8))
    assert (alone["token_budget"], spread["token_budget"]) == (8192, 1024)
    assert "conservativeness" not in alone
    assert spread["conservativeness"] == 0.3


def test_what_a_deployment_names_holds_and_the_rest_is_the_engines():
    found = resolve("vllm", "h100-sxm", max_sequences=64)
    assert (found["max_sequences"], found["token_budget"]) == (64, 8192)
    other = {"kind": "prefill_first", "max_sequences": 64}
    assert resolve("vllm", "h100-sxm", **other) == other


def test_a_run_says_what_engines_start_with_and_what_restores_the_scheduling_of_before():
    scenario, _ = load_scenario("gpt_oss_vs_qwen3_32b", [])
    plans = [make_plan(spec, 0, "test", Path()) for spec in scenario.deployments]
    (note,) = [note for note in notes_on(scenario, plans) if note.startswith("scheduling")]
    assert plans[0].name in note
    restored = note.partition("it was scheduling = ")[2].partition(" for all")[0]
    spec = scenario.deployments[0].model_copy(update=tomllib.loads(f"scheduling = {restored}"))
    rules = make_plan(spec, 0, "test", Path()).rules
    assert (rules.max_sequences, rules.watermark, rules.checks_known) == (256, 0.01, False)
