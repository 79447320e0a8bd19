"""``moesim plan`` as a user meets it: what is printed, what is written, what Ctrl-C keeps, what an
impossible target gets.
"""

import json
import re
import sys

import pandas as pd
import pytest

from simulator.base.data import find_file
from simulator.cli.plan import _Counted
from simulator.commands import plan as planned
from simulator.planner import search
from simulator.planner.store import Store
from simulator.results.answer import Answer
from simulator.results.plan_sentences import headline as headlines
from simulator.results.plan_sentences import reasons as sentences
from simulator.scenario.question import load_question
from tests.findings_database import read_findings
from tests.report.plan_answers import answer, row

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


@pytest.mark.slow
def test_it_prints_the_answer_and_writes_a_folder_that_report_and_run_take(plan, moesim, tmp_path):
    code, out, err = plan()
    assert code == 0, err
    folder = tmp_path / "reports/out/tiny_plan"
    answer, run = planned.read(folder)
    assert out.startswith(answer.headline)
    best = answer.recommended
    assert best.deployment in out
    assert f"{best.cost_per_hour:.2f}" in out
    assert re.search(r"USD/hour +USD/1M out +GPUs +TTFT p90 +TPOT p90 +tightest +deployment", out)
    assert "best so far: " in err
    assert "\n2 simulated\n" in err
    assert f"report: {folder.relative_to(tmp_path)}/report.html" in err
    assert run["seed"] == answer.seed == 3
    table = pd.read_csv(folder / "candidates.csv")
    assert list(table["cost_per_hour"]) == [row.cost_per_hour for row in answer.candidates]
    written = {
        "pareto.csv",
        "ruled_out.csv",
        "sensitivity.csv",
        "losses.csv",
        "crossover.csv",
        "recommended.toml",
        "report.html",
    }
    assert written <= {entry.name for entry in folder.iterdir()}

    first = {
        entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name != "run.json"
    }
    code, printed, err = plan("--json", "--cache", "another")
    assert code == 0, err
    assert json.loads(printed) == answer.model_dump(mode="json")
    assert {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name not in ("run.json", "report.html")
    } == {name: content for name, content in first.items() if name != "report.html"}, (
        "the same seed gives the same bytes, whatever was kept"
    )

    (folder / "report.html").unlink()
    code, _, err = moesim("report", folder)
    assert code == 0, err
    assert answer.headline in (folder / "report.html").read_text(encoding="utf-8").replace(
        "&#x27;", "'"
    )
    code, _, err = moesim("report", folder, folder)
    assert code == 2
    assert "is a folder of moesim plan" in err
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


def test_simulations_that_were_kept_are_counted_aloud(tmp_path):
    """A second search of the same question takes all from the store, and says so."""
    asked = tmp_path / "tiny.toml"
    asked.write_text(QUESTION, encoding="utf-8")
    question = load_question(str(asked), [])
    said = []
    for _ in range(2):
        counted = _Counted(lambda *_: None)
        search.search(question, tmp_path, Store(tmp_path / "kept"), counted, workers=1)
        said.append(counted.simulated("kept"))
    assert said == ["2 simulated", "0 simulated, 2 kept from before in kept"]


def test_a_folder_with_something_else_in_it_is_left_alone(plan, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me", encoding="utf-8")
    code, _, err = plan("--out", "mine")
    assert code == 2
    assert "notes.txt" in err
    assert [entry.name for entry in mine.iterdir()] == ["notes.txt"]


def test_impossible_targets_get_an_answer(plan, tmp_path):
    code, out, err = plan(
        text=QUESTION.replace("tpot_s = { p90 = 0.05 }", "tpot_s = { p90 = 0.005 }")
    )
    assert code == 3, err
    assert out.startswith(
        "No deployment within the limits meets every target: the nearest misses the time per "
        "output token (p90) by"
    )
    answer, _ = planned.read(tmp_path / "reports/out/tiny_plan")
    assert answer.recommended is None
    row = answer.why_not.row
    assert "Nearest, as large as the limits allow:" in out
    assert f"{row.cost_per_hour:.2f}  " in out
    assert row.deployment in out
    assert "Traceback" not in err


def test_ctrl_c_keeps_what_is_done(plan, tmp_path, monkeypatch):
    explored = search._explored
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return explored(*arguments)

    monkeypatch.setattr(search, "_explored", interrupted)
    monkeypatch.delitem(
        sys.modules, "ray", raising=False
    )  # with it, the command would end the process that the tests are in
    code, out, err = plan()
    assert code == 130
    assert out == ""
    assert "stopped; 1 of 2 simulations are kept in kept: run the same command to go on" in err
    assert not (tmp_path / "reports").exists()
    assert len(read_findings(tmp_path / "kept")) == 1


def headline(table):
    return headlines.headline(Answer.model_validate(table))


def reasons(table):
    return sentences.reasons(Answer.model_validate(table))


def rows(moe_cost, dense_cost):
    def row(model, is_moe, cost):
        return {
            "deployment": f"{model} on 2 x h100-sxm", "model": model, "is_moe": is_moe, "gpus": 2, ("cluster"): ("h100-sxm-2"),
            "cost_per_hour": cost, "cost_per_million_output_tokens": cost / 10, "token_budget": 8192, ("worst_target"): ("tpot_s.p90"),
            "worst_ratio": 0.9, "tpot_s.p90": 0.045,
        }  # fmt: skip

    found = {"moe": row("moe", True, moe_cost), "dense": row("dense", False, dense_cost)}
    best = min(found.values(), key=lambda row: row["cost_per_hour"])
    models = [{"name": "moe", "is_moe": True}, {"name": "dense", "is_moe": False}]
    targets = {"tpot_s.p90": 0.05, "ttft_s.p90": 1.0}
    return {
        "name": "tiny plan",
        "recommended": best | {"headroom": 1.3},
        "best_of_each_model": found,
        "models": models,
        "currency": "EUR",
        "targets": targets,
    }


@pytest.mark.parametrize(
    ("moe", "dense", "said"),
    [
        (10.0, 25.0, "the best dense model, dense, costs 2.5\N{MULTIPLICATION SIGN} as much"),
        (30.0, 15.0, "the best mixture of experts, moe, costs 2.0\N{MULTIPLICATION SIGN} as much"),
        (20.0, 20.0, "the best dense model, dense, costs the same"),
        (
            0.0,
            0.0,
            (
                "no price, since the machines are there; the best dense model, dense, "
                "needs 2 GPUs (h100-sxm-2)"
            ),
        ),
    ],
)
def test_the_headline_holds_the_kinds_against_each_other(moe, dense, said):
    assert said in headline(rows(moe, dense))


def test_the_headline_says_what_the_list_cannot_do():
    answer = rows(10.0, 20.0)
    del answer["best_of_each_model"]["dense"]
    assert headline(answer).endswith("no dense model of the list does (dense).")
    assert "10.00 EUR per hour, 1.00 EUR per million output tokens" in headline(answer)


def test_the_reasons_say_what_binds_and_what_is_left():
    said = reasons(rows(10.0, 20.0))
    assert any(
        line.startswith("What binds is the time per output token (p90): 45 ms, limit 50 ms")
        for line in said
    )
    assert any("1.30\N{MULTIPLICATION SIGN} this traffic" in line for line in said)
    easy = rows(10.0, 20.0)
    easy["recommended"] |= {"worst_ratio": 0.33, "tpot_s.p90": 0.0165}
    (line,) = [line for line in reasons(easy) if "limit 50 ms" in line]
    assert line.startswith(
        "Closest to its limit is the time per output token (p90): 16.5 ms, limit 50 ms"
    )


def test_bands_sizes_and_reasons_are_said_plainly():
    answer = rows(10.0, 20.0)
    del answer["best_of_each_model"]["dense"]
    answer["why_not_models"] = {
        "dense": {
            "target": "tpot_s.p90",
            "text": "misses TPOT by 1.2x on 8 GPUs, all that limits.gpus = 8 allows",
        }
    }
    answer["confidence"] = {"cost_low": 10.0, "cost_high": 10.0}
    answer["sizes"] = {
        "larger": {
            "gpus": 4, "cost_per_hour": 20.0, "deployment": "other on 4 x h100-sxm", ("worst_target"): ("tpot_s.p90"), ("worst_ratio"): 0.4,
        }
    }  # fmt: skip
    assert (
        "no dense model of the list does (dense misses TPOT by 1.2x on 8 GPUs, all that limits.gpus = 8 allows)"
        in headline(answer)
    )
    said = " ".join(reasons(answer))
    assert (
        "80 % band of the cost, from what the simulator may be off: 10.00 EUR per hour at both ends"
        in said
    )
    assert (
        "The next size up is 4 GPUs for 20.00 EUR per hour; the best there is other on 4 x h100-sxm, with the time per"
        in said
    )
    answer["confidence"] = {"cost_low": 10.0, "cost_high": None}
    assert "10.00 EUR per hour to no cluster within the limits is enough" in " ".join(
        reasons(answer)
    )


def test_machines_and_models_that_are_ruled_out_are_named():
    answer = rows(10.0, 20.0)
    answer["models"].append({"name": "other", "is_moe": True})
    answer["why_not_models"] = {"other": {"text": "its weights do not fit"}}
    answer["clusters_ruled_out"] = {
        "h200-sxm": "even 1 GPU of h200-sxm would cost 9.00 EUR per hour"
    }
    said = reasons(answer)
    assert "other is ruled out: its weights do not fit." in said
    assert "h200-sxm is ruled out: even 1 GPU of h200-sxm would cost 9.00 EUR per hour." in said


def test_what_the_traffic_hides_is_said():
    answer = rows(10.0, 20.0)
    assert not any("steady state" in line or "context" in line for line in reasons(answer))
    answer["traffic"] = {"rate_per_s": 20.0, "is_steady": False, "num_requests": 60, "lasts_s": 3.0}
    answer["recommended"] |= {"too_long_share": 0.0004, "preempted_share": 0.37}
    said = reasons(answer)
    assert any(line.startswith("37 % of the requests lose their KV blocks") for line in said)
    assert any(
        line.startswith("The 60 requests arrive within 3 s, which is too short for a steady state")
        for line in said
    )
    assert (
        "fewer than 0.1 % of the requests are longer than moe's context, and are counted as served."
        in said
    )


@pytest.mark.parametrize(
    ("less", "no_more", "said"),
    [
        (0.9, 0.9, "It costs less than the second choice, other, with a probability of 90 %."),
        (
            0.4,
            0.9,
            (
                "It costs less than the second choice, other, with a probability of 40 %, "
                "and no more with 90 %."
            ),
        ),
        (None, 0.9, "It costs no more than the second choice, other, with a probability of 90 %."),
    ],
)
def test_a_tie_with_the_second_choice_is_no_win(less, no_more, said):
    answer = rows(10.0, 20.0) | {
        "confidence": {"second": "other", "beats_second": no_more, "cheaper_than_second": less}
    }
    assert said in reasons(answer)


def test_headroom_has_its_band():
    answer = rows(10.0, 20.0)
    answer["recommended"] |= {"headroom_low": 1.1, "headroom_high": 1.6}
    assert "It would carry 1.30x this traffic with all targets met; 80 % band: 1.10x to 1.60x." in [
        line.replace("\N{MULTIPLICATION SIGN}", "x") for line in reasons(answer)
    ]


def test_a_spare_is_named_as_the_cause_of_the_size():
    answer = rows(10.0, 20.0)
    answer["recommended"] |= {"gpus": 16, "gpus_used": 8}
    answer["spare"] = {"lost": "1 node", "gpus": 8, "nodes": 2}
    answer["spare_nodes"] = [
        {"lost": "nothing", "nodes_lost": 0, "gpus_lost": 0, "gpus": 1, "cost_per_hour": 0.625}
    ]
    said = reasons(answer)
    assert (
        "The cluster has 16 GPUs, since 1 node may be lost; without the spare 1 GPU would do, 0.625 EUR per hour."
        in said
    )
    assert any(
        line.startswith("8 of its 16 GPUs stand idle: they are what may be lost") for line in said
    )
    answer["spare"], answer["recommended"]["gpus_used"] = {"lost": "", "gpus": 0}, 12
    assert any(
        line.startswith("4 of its 16 GPUs stand idle: the cluster comes in no smaller size")
        for line in reasons(answer)
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"a": None, "b": None}, "No quality score is given for any model"),
        ({"a": 0.7, "b": None, "c": None}, "No quality score is given for b, c:"),
        ({"a": 0.7, "b": 0.6}, None),
        ({"a": None}, None),
    ],
)
def test_a_quality_that_nobody_gave_is_not_taken_for_an_equal_one(scores, said):
    made = answer(best_of_each_model={
        name: row(name, name == "a", 2, 5.98, quality=score) for name, score in scores.items()
    })  # fmt: skip
    told = [reason for reason in reasons(made) if "quality" in reason]
    assert len(told) == (said is not None)
    assert all(reason.startswith(said) for reason in told)
