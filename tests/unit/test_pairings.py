"""Counterparts in scenarios and plans: read, overridden, checked, planned and handed over."""

import json
import tomllib

import pytest

from simulator.base.errors import UserError
from simulator.planner.handover import _relocate
from simulator.planner.space import Space
from simulator.report.deployment_tables import list_pairings
from simulator.results.results_folder import ResultsFolder
from simulator.scenario.jobs import load_question, load_scenario
from simulator.scenario.question import list_routing_notes
from tests.small_scenario import small_scenario
from tests.unit.test_plan_cli import QUESTION

PAIR = {"model": "gpt-oss-20b", "equal": "total_params"}


@pytest.fixture
def scenario():
    table = tomllib.loads(small_scenario("gpt-oss-20b", 1))
    first = table["deployments"][0]
    pair = {key: value for key, value in first.items() if key != "model"}
    table["deployments"].append(pair | {"name": "dense", "dense_of": PAIR})
    return table


def test_a_scenario_with_a_counterpart_may_be_overridden_again(scenario):
    loaded = load_scenario(load_scenario(scenario), {"deployments.1.dense_of.equal": "quality"})
    assert loaded.deployments[1].dense_of.equal == {"kind": "quality"}
    assert loaded.deployments[1].dense_of.model == "gpt-oss-20b"


def test_a_plan_takes_a_counterpart(tmp_path):
    table = tomllib.loads(QUESTION)
    table["models"] = [{"model": "gpt-oss-20b"}, {"dense_of": PAIR}]
    question = load_question(table)
    space = Space(question, tmp_path)
    total = [model.num_parameters for model in space.models]
    assert total[1] == pytest.approx(total[0], rel=0.01)
    assert [model.moe is None for model in space.models] == [False, True]
    made = load_question(table | {"models": [{"moe_of": {"model": "qwen3-8b", "equal": "cost"}}]})
    assert next(list_routing_notes(made)).facts["model"] == "MoE of qwen3-8b, equal cost"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"dense_of": PAIR, "routing": {"kind": "uniform"}}, "is dense and routes nothing"),
        ({"dense_of": {**PAIR, "equal": "size"}}, "unknown deployment.equal kind 'size'"),
        ({"dense_of": {**PAIR, "model": "gpt-oss"}}, "unknown model 'gpt-oss'"),
    ],
)
def test_a_plan_refuses_what_is_wrong_with_a_counterpart(model, told):
    table = tomllib.loads(QUESTION) | {"models": [model]}
    with pytest.raises(UserError, match=told):
        load_question(table)


def test_a_recommendation_keeps_its_counterpart(scenario, tmp_path):
    spec = load_scenario(scenario).deployments[1]
    entry = _relocate(spec.model_dump(exclude_defaults=True), tmp_path, tmp_path)
    assert entry["dense_of"] == {"model": "gpt-oss-20b", "equal": {"kind": "total_params"}}
    assert "model" not in entry


def shown(*measures):
    pairings = [each and {"reference": "moe", "equal": each} for each in measures]
    own = {f"d{number}": {"pairing": one} for number, one in enumerate(pairings)}
    return ResultsFolder({"deployments": own})


def test_a_page_offers_each_pairing_with_what_is_no_counterpart():
    assert list_pairings(shown(None, "quality", "total_params")) == {
        "quality": ["d0", "d1"],
        "total params": ["d0", "d2"],
        "all measures": ["d0", "d1", "d2"],
    }
    assert list_pairings(shown(None, "quality")) == {}
    assert json.dumps(list_pairings(shown(None))) == "{}"
