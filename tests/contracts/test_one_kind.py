"""A new kind of attention and of a feed-forward block is one file each, in the project or in a
package of the user's own, and goes through every command from there.
"""

import json
import shutil
import tomllib

import pandas as pd
import pytest

from tests.contracts.test_one_file import PROJECT, UNFINISHED, listed, moesim
from tests.unit.test_plan_cli import QUESTION

pytestmark = pytest.mark.slow  # each starts several commands

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


def run(folder, fidelity, *options, path=PROJECT):
    """The summary of the scenario, and its facts."""
    out = f"out-{fidelity}"
    done = moesim(
        folder, "run", "scenario.toml", "--fidelity", fidelity, "--out", out, *options, path=path
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((folder / out / "run.json").read_text())["deployments"]
    return pd.read_csv(folder / out / "summary.csv", index_col="deployment"), facts


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder with the kinds in a package of the user's own, and their runs."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").touch()
    for kind in sum(KINDS.values(), ()):
        copy_kind(kind, folder / "mine")
    write_files(folder, "mine.")
    return folder, {name: run(folder, name, "--allow-code") for name in ("step", "rank")}


def count_parameters():
    """Parameters of the model, counted by hand: all, and those that a token uses."""
    query, tied = HEADS * HEAD, GROUPS * HEAD
    attention = HIDDEN * (query + tied + HEAD // 2) + query * HIDDEN
    thin = 2 * HIDDEN * 256 + 2 * 256 * 4096
    always, expert = 16 * HIDDEN + 3 * HIDDEN * 2048, 3 * HIDDEN * 1024
    others = 2 * 8192 * HIDDEN + HIDDEN * (1 + 2 * LAYERS) + LAYERS * attention + thin
    return tuple(others + (LAYERS - 1) * (always + count * expert) for count in (16, 2))


def test_a_users_own_kinds_are_checked_run_and_planned(outside):
    folder, _ = outside
    checked = moesim(folder, "check", "scenario.toml", "--allow-code", "--json")
    assert checked.returncode == 0, checked.stderr
    model = moesim(folder, "check", "own.toml", "--allow-code")
    total, active = count_parameters()
    assert f"{total / 1e9:.2f} B parameters, {active / 1e9:.2f} B active" in model.stdout
    asked = ("plan", "question.toml", "--allow-code", "--workers", "2", "--out", "plan", "--json")
    planned = moesim(folder, *asked)
    assert planned.returncode == 0, planned.stderr
    best = json.loads(planned.stdout)["recommended"]
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
    folder, _ = outside
    refused = moesim(folder, "check", "own.toml")
    assert refused.returncode == 2
    assert "[mixers.own]: mixers kind 'mine.tied' would run code" in refused.stderr
    assert "--allow-code" in refused.stderr


def test_the_same_files_in_the_project_give_the_same_numbers(outside, tmp_path):
    for name in ("simulator", "workloads", "cluster_configs"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=UNFINISHED)
    for family, kinds in KINDS.items():
        for kind in kinds:
            copy_kind(kind, tmp_path / "simulator" / "config" / family)
        found = listed(tmp_path, family, path=tmp_path)
        assert set(kinds) < set(found)
    assert found["residual"].startswith("A dense block beside routed experts")
    write_files(tmp_path)
    checked = moesim(tmp_path, "check", "scenario.toml", path=tmp_path)
    assert checked.returncode == 0, checked.stderr
    schema = json.loads(moesim(tmp_path, "schema", "model", path=tmp_path).stdout)
    assert {"TiedAttention", "DenseResidual", "LowRank"} < set(schema["$defs"])
    _, runs = outside
    for fidelity, (summary, facts) in runs.items():
        own, own_facts = run(tmp_path, fidelity, path=tmp_path)
        pd.testing.assert_frame_equal(own, summary)
        for name, deployment in own_facts.items():
            assert deployment["kv_tokens"] == facts[name]["kv_tokens"]
