"""The Python API does what the command line does, from tables as from files."""

import json

import numpy as np
import pandas as pd
import pytest

import simulator
from simulator.base.writing import toml_text
from simulator.commands.sweep import _check_values
from simulator.lab.commands import validate as validation
from simulator.lab.results.scores import SCORE_COLUMNS
from simulator.report.figures.latency import Ttft
from simulator.results.folder import COLUMNS
from simulator.results.results_folder import read_long, write_long
from simulator.scenario.jobs import override_texts
from tests.laws.tiny_question import QUESTION
from tests.small_scenario import poisson

SCENARIO = {
    "name": "tiny",
    "workload": poisson(50.0, 100, 4, 5) | {"num_requests": 5},
    "deployments": [
        {
            "name": "own",
            "model": "stdlib-moe",
            "cluster": "h100-sxm-8",
            "parallel": {"attention_dp": 4, "ep": 4},
            "scheduling": {"kind": "chunked", "token_budget": 128, "max_sequences": 8},
        }
    ],
}
TOML = toml_text(SCENARIO, "a test")


@pytest.fixture(scope="module")
def results():
    return simulator.run(SCENARIO)


def test_a_table_runs_as_its_file_does_on_the_command_line(results, moesim, tmp_path):
    (tmp_path / "tiny.toml").write_text(TOML, encoding="utf-8")
    code, out, err = moesim("run", "tiny.toml", "--json")
    assert code == 0, err
    said = json.loads(out)
    own = json.loads(results.summary.to_json(orient="records", double_precision=15))
    assert said["summary"] == own
    assert said["verdict"] == results.run["verdict"]
    assert results.run["command"] == "Python: import simulator"


def test_overrides_are_values_by_path_or_texts():
    by_path = simulator.load_scenario(
        SCENARIO,
        {
            "workload.num_requests": 3,
            "deployments.*.routing": {"kind": "zipf", "exponent": 0.5},
            "deployments.0.engine": "sglang",
        },
        seed=9,
    )
    texts = [
        "workload.num_requests=3",
        'deployments.*.routing={ kind = "zipf", exponent = 0.5 }',
        "deployments.0.engine=sglang",
    ]
    by_text = simulator.load_scenario(SCENARIO, texts, seed=9)
    assert by_path.model_dump() == by_text.model_dump()
    assert by_path.seed == 9
    assert by_path.deployments[0].engine == "sglang"
    assert simulator.load_scenario(SCENARIO).workload.num_requests == 5, "the table is not changed"


def test_a_scenario_is_changed_and_keeps_its_place(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    first = simulator.load_scenario(path)
    changed = simulator.load_scenario(first, {"deployments.0.parallel.tp": 2})
    assert changed.deployments[0].parallel.tp == 2
    assert (changed.where, changed.folder) == (str(path), tmp_path.resolve())
    assert first.deployments[0].parallel.tp == 1
    unchanged = simulator.load_scenario(first)
    assert unchanged.model_dump() == first.model_dump()


@pytest.mark.parametrize("table", COLUMNS)
def test_every_table_is_a_frame_of_described_columns(results, table):
    frame = results.frame(table)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(simulator.describe_columns(table))
    assert frame.columns[0] == "deployment"
    seconds = [name for name in frame.columns if name.endswith("_s") and "_per_" not in name]
    assert all("[s]" in simulator.describe_columns(table)[name] for name in seconds)
    if table == "requests":
        assert len(frame) == 5


def test_a_lead_in_is_said_and_in_no_distribution():
    """By the workload's facts; explained by its judged requests."""
    led = simulator.run({**SCENARIO, "workload": SCENARIO["workload"] | {"judge_from_s": 0.02}})
    requests = led.frame("requests")
    later = requests[requests["arrival_s"] >= 0.02]
    count = len(requests) - len(later)
    assert count > 0
    assert led.run["workload"]["num_lead_in"] == count
    assert led.select_judged("own")["request"].tolist() == later["request"].tolist()
    assert led.summary["num_requests"].tolist() == [len(later)]
    (curve,) = Ttft().draw(led).data
    assert len(curve.x) == len(later) + 1


def test_results_are_written_read_and_reported(results, tmp_path):
    page = simulator.write_results(results, tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    again = simulator.load_results(tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame("requests"), results.frame("requests"))
    made = simulator.build_report(tmp_path / "run", tmp_path / "page.html")
    assert made.file.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert made.verdict == results.run["verdict"]


def test_a_table_is_checked_as_its_file_is(tmp_path):
    found = simulator.check(SCENARIO)
    assert (found.file, found.kind) == ("table", "scenario")
    path = tmp_path / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    assert found.details == simulator.check(path).details
    assert simulator.check(simulator.load_scenario(path)) == simulator.check(path)
    assert simulator.check(QUESTION, {"seed": 1}).kind == "plan"
    assert simulator.check(simulator.load_question(QUESTION)).file == "plan"
    with pytest.raises(simulator.UserError, match=r"scenario .*unknown key 'num_request'"):
        simulator.check({**SCENARIO, "workload": {**SCENARIO["workload"], "num_request": 1}})


def test_commands_write_their_folders(tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    for call in (
        lambda folder: simulator.execute("moe_vs_dense_local", folder=folder),
        lambda folder: simulator.validate(folder=folder),
        lambda folder: simulator.plan(QUESTION, folder=folder),
    ):
        with pytest.raises(simulator.UserError, match=r"holds 'mine.txt', which is no part"):
            call(tmp_path / "taken")
    row = ("gemm", "a", "b", "kernel", "s", 1.0, 1.1, 0.9, 1.2, "ok", "gemm.csv")
    rows = pd.DataFrame([row], columns=[*SCORE_COLUMNS, "source"])
    board = simulator.Scoreboard({"name": "validate"}, rows)
    monkeypatch.setattr(validation, "everything", lambda *_: board)
    monkeypatch.setattr(validation, "render", lambda _: "page")
    assert simulator.validate(folder=tmp_path / "scores") is board
    assert (tmp_path / "scores" / "report.html").read_text(encoding="utf-8") == "page"


def test_a_column_of_ones_own_is_in_all_deployments_or_refused(results, tmp_path):
    table = next(iter(results.requests.values()))
    more = table.assign(mine=1.0)
    with pytest.raises(simulator.UserError, match="only some deployments have a column 'mine'"):
        write_long({"one": table, "two": more}, tmp_path / "requests.parquet")
    write_long({"one": more, "two": more}, tmp_path / "requests.parquet")
    assert read_long(tmp_path / "requests.parquet", ["one", "two"])["two"]["mine"].eq(1.0).all()


LOCAL = "moe_vs_dense_local"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda _: simulator.execute(LOCAL, backend="rya"), "must be ray or in_process"),
        (lambda _: simulator.execute(LOCAL, backend="in_process", simulated_nodes=2), "no nodes"),
        (lambda _: simulator.execute(LOCAL, simulated_nodes=2, address="a:1"), "give one of them"),
        (lambda _: simulator.run(SCENARIO, workers=0), "must be at least 1"),
        (lambda _: simulator.plan("azure_conv", workers=0), "must be at least 1"),
        (lambda out: simulator.sweep([], out, {}), "needs a scenario"),
        (lambda out: simulator.sweep("gpt_oss_vs_qwen3_32b", out, {}, num_seeds=0), "a seed"),
        (lambda out: simulator.sweep(SCENARIO, out, {"workload.rate_scale": []}), "empty value"),
        (lambda _: simulator.build_report([]), "at least one results folder"),
        (lambda _: simulator.run(simulator.load_question("azure_conv")), "moesim plan takes"),
        (lambda _: simulator.load_scenario(SCENARIO, {"workload.slo": {"ttft_s": None}}), "None"),
        (lambda _: simulator.check({"name": "nothing"}), "a key would tell its kind"),
        (lambda _: simulator.check({"memory_bytes_per_s": 1e12}), "are checked as files"),
    ],
)
def test_what_the_command_line_refuses_is_refused_here(tmp_path, call, said):
    with pytest.raises(simulator.UserError, match=said):
        call(tmp_path / "out")


def test_numbers_of_numpy_and_keys_in_quotes_are_values(tmp_path):
    found = simulator.load_scenario(SCENARIO, {"workload.num_requests": np.int64(3)})
    assert found.workload.num_requests == 3
    assert override_texts({"a": {"gpt-4.1": np.array([1, 2])}}) == ['a={ "gpt-4.1" = [1, 2] }']
    assert _check_values("n", [np.int64(3), np.float64(0.5)], "n") == [3, 0.5]


def test_progress_is_told_and_an_interrupt_in_it_ends_the_run():
    told = []
    simulator.run(SCENARIO, progress=lambda name, done, total, *_: told.append((name, done, total)))
    assert ("own", 5, 5) in told

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulator.run(SCENARIO, progress=interrupt)


def test_a_sweep_takes_values_by_path(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    keys, overrides = {"workload.rate_scale": [1.0, 2.0]}, {"workload.num_requests": 3}
    found = simulator.sweep(path, tmp_path / "out", keys, overrides=overrides, workers=1)
    assert found.table["workload.rate_scale"].tolist() == [1.0, 2.0]
    assert found.table["num_requests"].tolist() == [3.0, 3.0]
    assert simulator.build_report(tmp_path / "out").verdict["headline"]
