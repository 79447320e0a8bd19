"""``moesim plan`` as a user meets it: what is printed, what is written, what Ctrl-C keeps, what an
impossible target gets.
"""

import json
import sys

import pandas as pd
import pytest

from simulator.base.data import find_file
from simulator.base.errors import UserError
from simulator.cli.plan import tell_simulated
from simulator.planner import search
from simulator.planner.space import OTHER_PROMPTS
from simulator.planner.store import Store
from simulator.results.answer.folder import PlanResults
from simulator.results.answer.handover import by_flag
from simulator.scenario.jobs import load_question
from tests.findings_database import read_findings

QUESTION = """
name = "tiny plan"
seed = 3

[workload.requests]
num_requests = 60
arrivals = { kind = "poisson", rate_per_s = 20.0 }
lengths = { kind = "fixed", num_input = 512, num_output = 64 }

[targets]
ttft_s = { p90 = 1.0 }
tpot_s = { p90 = 0.05 }

[[models]]
model = "gpt-oss-20b"

[[models]]
model = "qwen3-8b"

[[clusters]]
cluster = "h100-sxm"
max_gpus = 2
price_per_gpu_hour = 2.5

[space]
tp = [1]
attention_dp = [1]
pp = [1]
token_budgets = [2048]
redundant_experts = [0.0]
disaggregate = false

[crossover]
inputs = [1024]
outputs = [1024]
networks = [1.0]
batches = [1.0, 16.0]
eps = [1]
times_s = [0.05]
"""


@pytest.fixture
def plan(moesim, tmp_path):
    """Plan the tiny question; finished simulations are kept from call to call."""

    def run(*arguments, text=QUESTION):
        (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
        return moesim("plan", "tiny.toml", "--workers", 1, "--cache", "kept", *arguments)

    return run


def read_all(folder):
    """Contents of a folder, but for what is said of its making."""
    return {
        entry.relative_to(folder).as_posix(): entry.read_bytes()
        for entry in folder.rglob("*")
        if entry.is_file() and entry.name not in ("run.json", "report.html")
    }


@pytest.mark.slow
def test_it_prints_the_answer_and_writes_a_folder_that_report_and_run_take(plan, moesim, tmp_path):
    code, out, err = plan()
    assert code == 0, err
    folder = tmp_path / "reports/out/tiny_plan"
    found = PlanResults.read(folder)
    answer, run = found.answer, found.run
    assert answer.recommended.deployment in out
    assert run["seed"] == answer.seed == 3
    table = pd.read_csv(folder / "candidates.csv")
    assert list(table["cost_per_hour"]) == [row.cost_per_hour for row in answer.candidates]
    tables = {
        f"{name}.csv" for name in ("pareto", "ruled_out", "sensitivity", "losses", "crossover")
    }
    written = {entry.name for entry in folder.iterdir()}
    assert tables | {"recommended.toml", "report.html"} <= written

    first = read_all(folder)
    assert first["serve/server.sh"].startswith(b"#!/usr/bin/env bash")
    assert (folder / "serve/server.sh").stat().st_mode & 0o100
    command = next(one for one in answer.handover.commands if one.model == answer.recommended.model)
    assert by_flag(command.command) in out
    assert all(note in out for note in command.not_expressed)
    code, printed, err = plan("--json", "--cache", "another")
    assert code == 0, err
    assert json.loads(printed) == answer.model_dump(mode="json")
    assert read_all(folder) == first, "the same seed gives the same bytes, whatever was kept"
    (folder / "serve/mine.sh").write_text("keep me")
    with pytest.raises(UserError, match=r"serve/mine\.sh"):
        PlanResults.check_writable(folder)
    (folder / "serve/mine.sh").unlink()

    (folder / "report.html").unlink()
    code, _, err = moesim("report", folder)
    assert code == 0, err
    assert (folder / "report.html").is_file()
    code, _, err = moesim("report", folder, folder)
    assert code == 2
    assert "is a folder of moesim plan" in err
    (folder / "plan.json").write_text('{"of": "another version"}')
    PlanResults.check_writable(folder)
    code, _, err = moesim("run", folder / "recommended.toml", "--out", "again")
    assert code == 0, err


@pytest.mark.slow
def test_what_is_written_names_no_place_of_this_machine(plan, moesim, tmp_path):
    own = tmp_path / "models" / "own.toml"
    own.parent.mkdir()
    own.write_text(find_file("workloads/models", "qwen3-8b", "test").read_text())
    text = QUESTION.replace('[[models]]\nmodel = "gpt-oss-20b"\n', "")
    code, _, err = plan("--json", text=text.replace('"qwen3-8b"', f'"{own}"'))
    assert code == 0, err
    folder = tmp_path / "reports/out/tiny_plan"
    scenario = (folder / "recommended.toml").read_text()
    assert 'model = "../../../models/own.toml"' in scenario
    assert "# Paths are relative to this file" in scenario
    assert str(tmp_path) not in scenario
    assert moesim("check", folder / "recommended.toml")[0] == 0


def test_simulations_that_were_kept_are_counted_aloud(tmp_path, monkeypatch):
    """A second search of the same question takes all from the store, and says so; deployments whose
    other way with prompts misses are no simulations, but ruled out.
    """
    monkeypatch.setattr(search, "find_twin", lambda _, one, __: search._chunk_prompts(one, True))
    monkeypatch.setattr(search, "_explore_twin", lambda *_: None)
    asked = tmp_path / "tiny.toml"
    asked.write_text(QUESTION, encoding="utf-8")
    question = load_question(str(asked), [])
    said, shown = [], set()
    for _ in range(2):
        store = Store(tmp_path / "kept")
        result = search.search(
            question, tmp_path, store, lambda name, *_: shown.add(name), workers=1
        )
        said.append(tell_simulated(result.num_simulated, store))
        assert result.ruled.counts[OTHER_PROMPTS] == 2
    kept = f"0 simulated, 2 kept from before in {tmp_path / 'kept'}"
    assert said == ["2 simulated", kept]
    assert all(name.startswith(("screening ", "simulating ", "trying ")) for name in shown)


def test_impossible_targets_get_an_answer(plan, tmp_path):
    code, out, err = plan(
        text=QUESTION.replace("tpot_s = { p90 = 0.05 }", "tpot_s = { p90 = 0.005 }")
    )
    assert code == 3, err
    answer = PlanResults.read(tmp_path / "reports/out/tiny_plan").answer
    assert answer.recommended is None
    row = answer.why_not.row
    assert row.deployment in out
    assert "Traceback" not in err


def test_ctrl_c_keeps_what_is_done(plan, tmp_path, monkeypatch):
    explored = search._explore_candidate
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return explored(*arguments)

    monkeypatch.setattr(search, "_explore_candidate", interrupted)
    monkeypatch.delitem(
        sys.modules, "ray", raising=False
    )  # with it, the command would end the process that the tests are in
    code, out, err = plan()
    assert code == 130
    assert out == ""
    assert "stopped; 1 of 2 simulations are kept in kept: run the same command to go on" in err
    assert not (tmp_path / "reports").exists()
    assert len(read_findings(tmp_path / "kept")) == 1


ASKED = [
    *("--models", "olmoe-1b-7b", "--cluster", "h100-sxm"),
    *("--rate", "1", "--input", "64", "--output", "4"),
]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--models", "x", "--rate", "3"],
            ["--cluster", "--input", "--output", "--ttft or --tpot"],
        ),
        ([*ASKED, "--ttft", "p95=soon"], ["p50=0.5"]),
        ([*ASKED, "--tpot", "p42=1"], ["p42"]),
        (["azure_conv", "--rate", "3"], ["--set"]),
    ],
)
def test_a_question_by_options_names_what_is_missing_and_writes_nothing(
    moesim, tmp_path, words, said
):
    code, _, err = moesim("plan", *words)
    assert code == 2
    assert all(word in err for word in said), err
    assert not list(tmp_path.iterdir())


def test_a_question_by_options_replaces_no_file_of_another_hand(moesim, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text("name = 'mine'\n")
    code, _, err = moesim("plan", *ASKED, "--ttft", "1.5", "--out", "mine")
    assert (code, "another --out" in err) == (2, True)
    assert mine.read_text() == "name = 'mine'\n"


@pytest.mark.slow
def test_a_question_by_options_is_the_file_that_it_writes(moesim, tmp_path):
    small = ("--set", "space.max_gpus_per_replica=1", "--set", "workload.num_requests=50")
    code, _, err = moesim("plan", *ASKED, "--ttft", "1.5", "--workers", "1", *small, "--out", "by")
    assert (code, "that of p95" in err) == (0, True)
    assert moesim("plan", "by.toml", "--workers", "1", *small, "--out", "file")[0] == 0
    first, second = (
        json.loads((tmp_path / name / "plan.json").read_text()) for name in ("by", "file")
    )
    assert first["recommended"] == second["recommended"]
    assert first["targets"] == {"ttft_s.p95": 1.5}
