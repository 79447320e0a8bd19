"""What is taken for granted where nobody says how unevenly experts are used: said, and never
uniform.
"""

import json
import statistics

import numpy as np
import pytest

from simulator.base.data import available_files
from simulator.base.plugins import build
from simulator.base.reading import read_toml
from simulator.commands.check import check as check_file
from simulator.commands.run import run as run_scenario
from simulator.config.model import MEDIAN_SIGMA, complete_routing, load_model, routing_note
from simulator.deployment.plan import make_plan
from simulator.scenario.jobs import load_scenario
from tests.small_scenario import small_scenario

CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "vocab_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 1024,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SCENARIO = small_scenario("config.json", 8)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    return tmp_path / "scenario.toml"


def test_the_assumed_spread_is_the_median_of_the_models_that_were_measured():
    measured = {}
    for name, path in available_files("workloads/models").items():
        table = read_toml(path)
        if str(table.get("routing_source")).strip().startswith(("Measured", "Published:")):
            measured[name] = table["routing"]["sigma"]
    assert len(measured) == 7
    assert statistics.median(measured.values()) == MEDIAN_SIGMA
    assert build("routing", {"kind": "lognormal"}, "test").sigma == MEDIAN_SIGMA


@pytest.mark.slow
def test_a_config_json_runs_as_check_says_and_its_routing_is_called_assumed(own):
    found = check_file(str(own), [])
    assert any(f"sigma {MEDIAN_SIGMA}, the median of seven" in note for note in found.notes)
    assert check_file(str(own.parent / "config.json"), []).notes
    scenario = load_scenario(str(own), [])
    run = run_scenario(scenario).run
    assert run["notes"] == list(found.notes)
    facts = run["deployments"]["own"]
    assert facts["routing"] == f"lognormal (sigma {MEDIAN_SIGMA})"
    assert {note for note in found.notes if "sigma" in note} <= set(facts["warnings"])
    row = next(row for row in facts["assumptions"] if row["what"] == "routing")
    assert row["kind"] == "assumed"


def test_what_is_assumed_is_less_even_than_uniform(own):
    def busiest(*overrides):
        scenario = load_scenario(str(own), list(overrides))
        plan = make_plan(scenario.deployments[0], scenario.seed, "test", own.parent)
        return max(np.bincount(ids.ravel()).max() for ids in plan.placement.experts.topk_ids_LTK)

    assert busiest() > 1.5 * busiest('deployments.0.routing={ kind = "uniform" }')


def test_lognormal_without_sigma_is_completed_and_said(own):
    override = 'deployments.0.routing={ kind = "lognormal", num_domains = 2 }'
    assert any("sigma" in note for note in check_file(str(own), [override]).notes)
    notes = check_file(str(own), [override.replace("2 }", "2, sigma = 0.4 }")]).notes
    assert not any("sigma" in note for note in notes)
    routing, source = complete_routing({"kind": "lognormal"}, "the scenario")
    assert routing["sigma"] == MEDIAN_SIGMA
    assert source.startswith("the scenario; sigma is assumed")


def test_shipped_models_say_their_own_routing():
    for name in available_files("workloads/models"):
        model = load_model(name, "test")
        assert not list(routing_note(name, model.routing_source))
