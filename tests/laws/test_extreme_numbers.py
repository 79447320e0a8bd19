"""Whatever number stands in a file: it is refused in one line, or it can be computed with."""

import copy
import json
import math
import tomllib
import warnings

import numpy as np
import pytest

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.reading import read_json, read_toml
from simulator.commands.check import check as check_file
from simulator.commands.run import run as run_scenario
from simulator.config.model import load_model
from simulator.scenario.jobs import load_scenario
from simulator.workload.requests import describe, fano_factor
from simulator.workload.traces import RequestTrace
from tests.cases import times
from tests.shared import shared_file
from tests.small_scenario import small_scenario

pytestmark = pytest.mark.seeded

EXTREMES = (
    *(
        0,
        -1,
        1,
        2,
        7,
        1000,
        10**4,
        10**6,
        10**7,
        8896,
        2**31,
        2**40,
        2**62,
        2**63 - 1,
        2**63,
        10**30,
    ),
    *(0.0, -1.0, 1e-300, 1e-12, 0.5, 1.0, 1e3, 1e9, 3.6e9, 1e12, 1e18, 1e300),
)


def places(node, path=()):
    """Paths of all numbers of a table."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from places(child, (*path, key))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from places(child, (*path, number))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path


def changed(table, path, value):
    found = copy.deepcopy(table)
    node = found
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return found


def toml(value):
    """A TOML value; tables are written in line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def written(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(k)} = {toml(v)}\n" for k, v in table.items()))
    assert tomllib.loads(path.read_text()).keys() == table.keys()
    return path


def one_number_each(families, seed, count):
    """``(name, table)`` with one number replaced."""
    rng = np.random.default_rng(seed)
    files = [path for family in families for path in available_files(family).values()]
    for _ in range(times(count)):
        path = files[rng.integers(len(files))]
        table = read_toml(path)
        found = list(places(table))
        if found:
            place = found[rng.integers(len(found))]
            yield path.stem, changed(table, place, EXTREMES[rng.integers(len(EXTREMES))])


def refusal(check, *arguments):
    """In which line an input is refused; empty where it is accepted."""
    said = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # overflow of floats
        try:
            check(*arguments)
        except UserError as refused:
            said = str(refused)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    "family", ["workloads/models", "cluster_configs", "cluster_configs/accelerators"]
)
def test_a_number_in_a_model_or_a_machine(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusals = []
    for name, table in one_number_each([family], 1, 20):
        path = written(tmp_path / f"{name}.toml", table)
        refusals.append(refusal(check_file, str(path), []))
        if not refusals[-1] and "models" in family:
            model = load_model(str(path), "test")
            assert model.num_active_parameters <= model.num_parameters < 2**63
    assert any(refusals)


@pytest.mark.measured
def test_a_number_in_a_config_json(tmp_path):
    configs = sorted(shared_file("traces/formats/hf_configs").rglob("*.json"))
    rng = np.random.default_rng(2)
    refusals = []
    for _ in range(times(20)):
        config = json.loads(configs[rng.integers(len(configs))].read_text())
        found = list(places(config))
        place = found[rng.integers(len(found))]
        path = tmp_path / "config.json"
        path.write_text(json.dumps(changed(config, place, EXTREMES[rng.integers(len(EXTREMES))])))
        refusals.append(refusal(check_file, str(path), []))
    assert any(refusals)


@pytest.mark.measured
def test_ten_million_layers_are_refused_before_they_are_listed(tmp_path):
    config = read_json(shared_file("traces/formats/hf_configs") / "Qwen--Qwen3-30B-A3B_config.json")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"num_hidden_layers": 10**7}))
    said = refusal(check_file, str(path), [])
    assert "num_hidden_layers must be at most 1,000 layers, got 10,000,000" in said


KEYS = (
    *("deployments.0.scheduling={ kind = 'chunked', token_budget = V }",),
    *("deployments.0.scheduling={ kind = 'chunked', max_sequences = V }",),
    *("deployments.0.scheduling={ kind = 'no_evict', wait_steps = V, max_sequences = 16 }",),
    *("deployments.0.routing={ kind = 'lognormal', sigma = 0.7, num_domains = V }",),
    *("deployments.0.routing={ kind = 'lognormal', sigma = V }",),
    *("deployments.0.routing={ kind = 'zipf', exponent = V }",),
    *("deployments.0.placement={ kind = 'eplb', num_slots = V }",),
    *("deployments.0.parallel={ attention_dp = V, ep = V }",),
    *("deployments.0.parallel={ tp = V }", "deployments.0.parallel={ pp = V }"),
    *("deployments.0.kv_block_tokens=V", "deployments.0.memory_fraction=V"),
    *("deployments.0.activation_bytes=V", "deployments.0.replicas=V"),
    *("deployments.0.network_speed=V", "deployments.0.price_per_gpu_hour=V"),
    *("workload.requests.lengths.num_input=V", "workload.requests.lengths.num_output=V"),
    *("workload.requests.arrivals.rate_per_s=V", "workload.rate_scale=V"),
    *("workload.prompt_scale=V", "workload.start_s=V", "workload.duration_s=V", "seed=V"),
    *("workload.slo.ttft_s=V", "workload.num_requests=V"),
)
SCENARIO = small_scenario("mixtral-8x7b", 8, "moe", 'weight_dtype = "fp8"')
MOST_STEPS = 10**6
"""Requests times tokens up to which a scenario that passes is run here too."""


@pytest.mark.slow
def test_a_scenario_that_check_accepts_runs(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    rng = np.random.default_rng(3)
    refusals = []
    for key in (KEYS[n % len(KEYS)] for n in range(times(len(KEYS)))):
        override = key.replace("V", repr(EXTREMES[rng.integers(len(EXTREMES))]))
        refusals.append(refusal(check_file, str(path), [override]))
        if refusals[-1]:
            continue
        scenario = load_scenario(str(path), [override])
        asked = scenario.workload.requests
        lengths = asked["lengths"]
        steps = (scenario.workload.num_requests or 5) * lengths["num_output"]
        if steps <= MOST_STEPS:
            results = run_scenario(scenario)
            served = results.summary["output_tokens_per_s"].iloc[0]
            assert math.isfinite(served), override
    assert any(refusals)
    assert not all(refusals)


def test_an_hour_in_microseconds_is_doubted(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,num_input,num_output\n0,10,10\n3600000000,10,10\n")
    (tmp_path / "scenario.toml").write_text(
        SCENARIO.replace("[workload.requests]\n", 'requests = "trace.csv"\n')
        .replace('arrivals = { kind = "poisson", rate_per_s = 50.0 }\n', "")
        .replace('lengths = { kind = "fixed", num_input = 100, num_output = 4 }\n', "")
    )
    with pytest.raises(UserError, match=r"trace\.csv: .* 31,622,400; is this in .*microseconds"):
        check_file(str(tmp_path / "scenario.toml"), [])


def test_statistics_take_memory_by_requests_and_not_by_time():
    arrival_s = np.array([0.0, 1.0, 5e17, 1e18])
    trace = RequestTrace(arrival_s, np.ones(4, np.int64), np.ones(4, np.int64), "made up")
    assert describe(trace)["fano_1s"] == pytest.approx(1.0)


def test_only_windows_with_requests_are_counted():
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.gamma(0.3, 1.0, 5_000))
    since = arrival_s - arrival_s[0]
    whole = int(since[-1] // 2.5)
    counts = np.bincount((since[since < whole * 2.5] // 2.5).astype(int), minlength=whole)
    assert fano_factor(arrival_s, 2.5) == pytest.approx(counts.var() / counts.mean(), rel=1e-12)
