"""A new kind of attention and of a feed-forward block is one file each, in the project or in a
package of the user's own, and goes through every command from there.
"""

import json
import shutil
import tomllib

import pandas as pd
import pytest

from tests.contracts.processes import PROJECT, copy_project, moesim
from tests.unit.test_plan_cli import QUESTION

pytestmark = pytest.mark.slow  # starts processes

KINDS = {
    "mixers": ("tied",),
    "ffns": ("residual", "low_rank"),
}
"""Files of ``tests/kinds``."""
HIDDEN, LAYERS, HEADS, GROUPS, HEAD = 1024, 4, 16, 4, 64
MODEL = f"""
hidden_size = {HIDDEN}
vocab_size = 8192
layers = [
  {{ pattern = [["own", "thin"]] }},
  {{ repeat = {LAYERS - 1}, pattern = [["own", "both"]] }},
]
routing = {{ kind = "zipf", exponent = 0.5 }}
[mixers]
own = {{ kind = "TIED", num_heads = {HEADS}, num_groups = {GROUPS}, head_size = {HEAD} }}
[ffns.both]
kind = "RESIDUAL"
dense_size = 2048
num_experts = 16
top_k = 2
intermediate_size = 1024
[ffns.thin]
kind = "LOW_RANK"
rank = 256
intermediate_size = 4096
"""
SCENARIO = """
[workload]
num_requests = 20
[workload.requests]
arrivals = { kind = "poisson", rate_per_s = 50.0 }
lengths = { kind = "fixed", num_input = 200, num_output = 8 }
[[deployments]]
name = "spread"
model = "own.toml"
cluster = "h100-sxm-8"
parallel = { attention_dp = 4, ep = 4 }
replicas = 1
[[deployments]]
name = "split"
model = "own.toml"
cluster = "h100-sxm-8"
parallel = { tp = 4, ep = 4 }
replicas = 1
"""


def write_files(folder, package=""):
    """A model of the new kinds, a scenario and a question that name it."""
    model = MODEL
    for kind in ("residual", "low_rank", "tied"):
        model = model.replace(kind.upper(), f"{package}{kind}")
    assert tomllib.loads(model)["mixers"]["own"]["kind"] == f"{package}tied"
    question = QUESTION.replace("gpt-oss-20b", "own.toml").replace(
        '[[models]]\nmodel = "qwen3-8b"\n', ""
    )
    for name, text in (("own", model), ("scenario", SCENARIO), ("question", question)):
        (folder / f"{name}.toml").write_text(text)


def copy_kind(kind, folder):
    shutil.copy(PROJECT / "tests" / "kinds" / f"{kind}.py", folder)


FIDELITIES = ("step", "rank")
RUNS = [("run", "scenario.toml", "--fidelity", name, "--out", name) for name in FIDELITIES]


def read_run(folder, fidelity):
    """The summary of the scenario, and its facts."""
    facts = json.loads((folder / fidelity / "run.json").read_text())["deployments"]
    return pd.read_csv(folder / fidelity / "summary.csv", index_col="deployment"), facts


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """What commands say of the kinds in a package of the user's own, and their runs."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").touch()
    for kind in sum(KINDS.values(), ()):
        copy_kind(kind, folder / "mine")
    write_files(folder, "mine.")
    model, plan = ("check", "own.toml"), ("plan", "question.toml", "--workers", "1", "--json")
    allowed = [("check", "scenario.toml", "--json"), model, (*plan, "--out", "plan"), *RUNS]
    refused, checked, shown, planned, *runs = moesim(
        folder, model, *((*words, "--allow-code") for words in allowed)
    )
    assert [(one.status, one.err) for one in runs if one.status] == []
    said = {"refused": refused, "checked": checked, "model": shown, "planned": planned}
    return said, {name: read_run(folder, name) for name in FIDELITIES}


def count_parameters():
    """Parameters of the model, counted by hand: all, and those that a token uses."""
    query, tied = HEADS * HEAD, GROUPS * HEAD
    attention = HIDDEN * (query + tied + HEAD // 2) + query * HIDDEN
    thin = 2 * HIDDEN * 256 + 2 * 256 * 4096
    always, expert = 16 * HIDDEN + 3 * HIDDEN * 2048, 3 * HIDDEN * 1024
    others = 2 * 8192 * HIDDEN + HIDDEN * (1 + 2 * LAYERS) + LAYERS * attention + thin
    return tuple(others + (LAYERS - 1) * (always + count * expert) for count in (16, 2))


def test_a_users_own_kinds_are_checked_run_and_planned(outside):
    said, _ = outside
    assert said["checked"].answer
    total, active = count_parameters()
    assert f"{total / 1e9:.2f} B parameters, {active / 1e9:.2f} B active" in said["model"].out
    best = said["planned"].answer["recommended"]
    assert best["gpus"] == 1
    assert best["deployment"].startswith("own ")


def test_facts_of_a_run_are_what_the_kinds_answer(outside):
    _, runs = outside
    total, active = count_parameters()
    token_bytes = LAYERS * 2 * (GROUPS * HEAD + HEAD // 2)
    for _, facts in runs.values():
        for name, num_parts, num_ranks in (("spread", 1, 4), ("split", GROUPS, 1)):
            found = facts[name]
            assert (found["total_parameters"], found["active_parameters"]) == (total, active)
            held = found["memory"]["kv_bytes"] / (token_bytes / num_parts)
            assert found["kv_tokens"] // num_ranks == held // 16 * 16  # whole blocks


def test_both_fidelities_agree_on_own_kinds(outside):
    _, runs = outside
    (step, _), (rank, _) = runs["step"], runs["rank"]
    assert list(step.index) == ["spread", "split"]
    for column in ("ttft_p50_s", "tpot_p50_s", "output_tokens_per_s"):
        assert step[column].to_numpy() == pytest.approx(rank[column].to_numpy(), rel=0.1)
    assert (step["num_requests"] == 20).all()


def test_code_of_own_kinds_runs_only_where_it_is_allowed(outside):
    refused = outside[0]["refused"]
    assert refused.status == 2
    assert "[mixers.own]: mixers kind 'mine.tied' would run code" in refused.err
    assert "--allow-code" in refused.err


def test_the_same_files_in_the_project_give_the_same_numbers(outside, tmp_path):
    copy_project(tmp_path)
    for family, kinds in KINDS.items():
        for kind in kinds:
            copy_kind(kind, tmp_path / "simulator" / "config" / family)
    write_files(tmp_path)
    lists = [("list", family, "--json") for family in KINDS]
    checks = ("check", "scenario.toml"), ("schema", "model")
    *lists, checked, schema = moesim(tmp_path, *lists, *checks, *RUNS, path=tmp_path)[:-2]
    for (family, kinds), listed in zip(KINDS.items(), lists, strict=True):
        assert set(kinds) < set(listed.answer[family])
    assert listed.answer["ffns"]["residual"].startswith("A dense block beside routed experts")
    assert checked.status == 0, checked.err
    assert {"TiedAttention", "DenseResidual", "LowRank"} < set(schema.answer["$defs"])
    _, runs = outside
    for fidelity, (summary, facts) in runs.items():
        own, own_facts = read_run(tmp_path, fidelity)
        pd.testing.assert_frame_equal(own, summary)
        for name, deployment in own_facts.items():
            assert deployment["kv_tokens"] == facts[name]["kv_tokens"]
