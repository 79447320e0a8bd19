"""Recommendations as a scenario: it loads, means the plan's traffic and deployments, and meets the
targets when it is run.
"""

from pathlib import Path

import numpy as np
import pytest

from simulator.base.formats import batched_tokens
from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.deployment.plan import make_plan
from simulator.planner.answer import make_answer
from simulator.planner.evaluations import deployment_of, price_cluster, text_of
from simulator.planner.explore import ClusterSize
from simulator.planner.handover import choose_handed_over, commands, hand_over, scenario_text
from simulator.planner.screen import Candidate
from simulator.planner.search import search
from simulator.planner.space import ReplicaShape, Space
from simulator.planner.store import Store
from simulator.planner.traffic import traffic_of
from simulator.results.answer import Handover
from simulator.scenario.jobs import load_scenario
from simulator.workload.requests import load_requests
from simulator.workload.traces import RequestTrace
from simulator.workload.traces.table import write_table

QUESTION = {
    "name": "small",
    "seed": 3,
    "workload": {"requests": "azure-conv", "num_requests": 300, "rate_scale": 1.2345678901},
    "targets": {"ttft_s": {"p50": 1.0, "p90": 2.0}, "tpot_s": {"p90": 0.05}},
    "models": [
        {"model": "gpt-oss-20b"},
        {"model": "qwen3-8b", "weight_dtypes": ["bf16"], "engine": "sglang"},
    ],
    "clusters": [{"cluster": "h100-sxm", "max_gpus": 2, "price_per_gpu_hour": 2.5}],
    "space": {"tp": [1, 2], "attention_dp": [1], "token_budgets": [2048], "disaggregate": False},
}


def found_of(folder=Path(), **keys):
    return search(validate(Question, {**QUESTION, **keys}, "test"), folder, Store(None), workers=1)


@pytest.fixture(scope="module")
def found():
    return found_of()


def loaded(text, folder):
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(str(path), [])


def test_the_traffic_is_the_plans(found, tmp_path):
    scenario = loaded(scenario_text(found, choose_handed_over(found)), tmp_path)
    assert scenario.workload.rate_scale == 1.2345678901
    same(load_requests(scenario.workload, tmp_path, scenario.seed), found.traffic.trace)


def same(got, wanted):
    np.testing.assert_array_equal(got.num_input, wanted.num_input)
    np.testing.assert_array_equal(got.num_output, wanted.num_output)
    np.testing.assert_allclose(got.arrival_s, wanted.arrival_s, rtol=0, atol=1e-6)


LENGTHS = {
    "kind": "lognormal",
    "input": {"p50": 200.0, "p90": 800.0},
    "output": {"p50": 40.0, "sigma": 0.5},
}


DRAWN = {"arrivals": {"kind": "poisson", "rate_per_s": 5.0}, "lengths": LENGTHS}
SLOWER = {"kind": "poisson", "rate_per_s": 4.0}


@pytest.mark.parametrize(
    "workload",
    [
        {"requests": "azure-conv", "num_requests": 400, "start_s": 30.0, "rate_scale": 3.0},
        {"requests": "azure-conv", "duration_s": 40.0, "rate_scale": 2.0},
        {"requests": {**DRAWN, "num_requests": 200}},
        {"requests": "requests.csv", "rate_scale": 1.7},
        {"requests": "requests.csv", "start_s": 12.0, "arrivals": SLOWER},
    ],
)
def test_the_busiest_stretch_is_cut_out_of_the_source(workload, tmp_path, found):
    rng = np.random.default_rng(5)
    arrival_s = np.cumsum(rng.exponential(0.4, 150))
    lengths = rng.integers(50, 900, 150), rng.integers(5, 90, 150)
    write_table(RequestTrace(arrival_s, *lengths, "drawn"), tmp_path / "requests.csv")
    question = validate(Question, {**QUESTION, "workload": workload, "peak_s": 10.0}, "test")
    space, traffic = Space(question, tmp_path), traffic_of(question, tmp_path)
    asked = found._replace(question=question, space=space, traffic=traffic)
    whole = load_requests(question.workload, tmp_path, question.seed)
    there = tmp_path / "out"
    there.mkdir()
    for folder in (None, there):
        scenario = loaded(scenario_text(asked, choose_handed_over(found), folder), there)
        got = load_requests(scenario.workload, there, scenario.seed)
        assert 0 < got.num_requests < whole.num_requests
        same(got, traffic.trace)


def test_limits_are_the_highest_percentiles_unless_the_question_has_its_own(found, tmp_path):
    def limits_of(result):
        text = scenario_text(result, choose_handed_over(found))
        return loaded(text, tmp_path).workload.slo

    slo = limits_of(found)
    assert (slo.ttft_s, slo.tpot_s, slo.e2e_s) == (2.0, 0.05, None)
    limits = slo.model_copy(update={"ttft_s": 9.0})
    workload = found.question.workload.model_copy(update={"slo": limits})
    question = found.question.model_copy(update={"workload": workload})
    assert limits_of(found._replace(question=question)).ttft_s == 9.0


def test_the_scenario_carries_the_plans_price(found, tmp_path):
    scenario = loaded(scenario_text(found, choose_handed_over(found)), tmp_path)
    assert {spec.price_per_gpu_hour for spec in scenario.deployments} == {2.5}
    plan = make_plan(scenario.deployments[0], scenario.seed, "test", scenario.folder)
    assert plan.placement.cluster.price_per_gpu_hour == 2.5


def test_idle_gpus_are_said_where_there_are_any(found):
    first = found.evaluations[0]
    assert first.num_gpus == first.cluster_size.size
    assert "idle_gpus" not in scenario_text(found, [first])
    larger = first.cluster_size._replace(size=first.num_gpus + 1)
    partly = first._replace(cluster_size=larger)
    assert "idle_gpus = 1\n" in scenario_text(found, [partly])


def test_electricity_is_that_of_the_whole_cluster_by_the_kilowatt_hour(found):
    power = found.question.power.model_copy(update={"price_per_kwh": 0.2})
    asked = found._replace(question=found.question.model_copy(update={"power": power}))
    first = found.evaluations[0]
    watts = first.cluster_size.size * found.space.machines[0].watts_per_gpu
    assert price_cluster(asked, first)["cost_power_per_hour"] == pytest.approx(0.2 * watts / 1000)
    assert price_cluster(found, first)["cost_power_per_hour"] == 0


def test_names_differ_and_nothing_is_there_twice(found):
    first, candidate = found.evaluations[0], found.evaluations[0].candidate
    larger = first._replace(candidate=candidate._replace(budget=2 * candidate.budget))
    many = [first, larger, *found.evaluations[1:]]
    names = [text_of(found._replace(evaluations=many), one) for one in many]
    assert len(set(names)) == len(names)
    assert batched_tokens(2 * candidate.budget) in names[1]
    assert "batched tokens" not in text_of(found, first)
    assert len({evaluation.candidate for evaluation in choose_handed_over(found)}) == len(
        choose_handed_over(found)
    )


def test_commands_are_those_of_each_models_engine(found):
    given = hand_over(found)
    assert {one.command.split()[0] for one in given.commands} == {"vllm", "python"}
    assert Handover.model_validate_json(given.model_dump_json()) == given == hand_over(found)


def test_the_answer_holds_scenarios_that_load(found, tmp_path):
    files = {one.file: loaded(one.text, tmp_path) for one in make_answer(found).handover.scenarios}
    assert list(files) == ["recommended.toml", "compared.toml"]
    assert files["recommended.toml"].deployments == files["compared.toml"].deployments[:1]


def test_pools_survive_the_file(found, tmp_path):
    base = found.evaluations[0].candidate
    shape = ReplicaShape(0, 0, 1, 1, 1, "", "bf16", 0, "none")
    candidate = base._replace(shape=shape, prefill=shape, budget=4096)
    pools = found.evaluations[0]._replace(
        candidate=Candidate(*candidate), cluster_size=ClusterSize(2, 1, 1)
    )
    scenario = loaded(scenario_text(found, [pools]), tmp_path)
    assert scenario.deployments[0] == deployment_of(found, pools, scenario.deployments[0].name)
    assert scenario.deployments[0].prefill.scheduling["token_budget"] == 4096
    assert [one.name for one in commands(found, pools)][-1] == "router in front of all servers"
