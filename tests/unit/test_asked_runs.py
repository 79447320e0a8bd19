"""Runs without a file, runs again from a folder, and how two folders differ."""

import json

import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.commands.folders import diff, recall_job
from simulator.commands.run import run
from simulator.planner.smallest import compare
from simulator.results.answer import Answer
from simulator.results.answer.folder import PlanResults
from simulator.results.results_folder import write_run
from simulator.scenario.jobs import load_scenario
from tests.report.plan_answers import RUN, answer

SHAPE = ("--cluster", "h100-sxm", "--rate", "4", "--input", "64", "--output", "4")
ASKED = ("--models", "olmoe-1b-7b,qwen3-8b", *SHAPE, "--ttft", "1.5")
FEW = ("--set", "workload.num_requests=30")


@pytest.mark.slow
def test_a_run_by_options_is_the_file_that_it_writes_and_runs_again_from_its_folder(
    moesim, tmp_path
):
    assert moesim("run", *ASKED, *FEW, "--out", "asked")[0] == 0
    assert load_scenario(str(tmp_path / "asked.toml")).workload.slo.ttft_s == 1.5
    assert moesim("run", "asked.toml", *FEW, "--out", "file")[0] == 0
    assert moesim("run", "--from", "asked/run.json", "--out", "again")[0] == 0
    first = pd.read_csv(tmp_path / "asked/summary.csv")
    assert first["num_requests"].tolist() == [30, 30]
    for other in ("file", "again"):
        pd.testing.assert_frame_equal(first, pd.read_csv(tmp_path / other / "summary.csv"))
        metrics, keys = diff(tmp_path / "asked", tmp_path / other)
        assert metrics.empty
        assert not keys
    faster = ("--set", "workload.rate_scale=2.0")
    code, _, err = moesim("run", "--from", "asked", *faster)
    assert code == 0, err
    code, out, _ = moesim("diff", "asked", "reports/out/asked_again", "--json")
    found = json.loads(out)
    keys = {key: pair for key, pair in found["keys"].items() if not key.startswith("run.json: ")}
    assert keys == {"workload.rate_scale": [1.0, 2.0]}
    rates = found["keys"]["run.json: workload.rate_per_s"]
    assert rates[1] == pytest.approx(2 * rates[0])
    assert "run.json: workload.input.mean" not in found["keys"]
    second = pd.read_csv(tmp_path / "reports/out/asked_again/summary.csv")
    rows = {(row["deployment"], row["metric"]): row for row in found["metrics"]}
    name = first["deployment"][0]
    row = rows[name, "output_tokens_per_s"]
    before, after = (float(one["output_tokens_per_s"][0]) for one in (first, second))
    assert (row["first"], row["second"]) == (before, after)
    assert row["change"] == pytest.approx(after - before)
    assert row["ratio"] == pytest.approx(after / before)
    assert (name, "num_requests") not in rows


def laid_out(models="mixtral-8x7b,qwen3-8b", cluster="h100-sxm", num_gpus=None, ttft="1.5"):
    return compare(models, cluster, 3.0, 2000, 300, {"ttft_s": ttft}, num_gpus)


def warnings_of(num_input, rate, num_requests):
    asked = compare("olmoe-1b-7b", "h100-sxm", rate, num_input, 20, {"ttft_s": "5"})
    results = run({**asked, "workload": {**asked["workload"], "num_requests": num_requests}})
    found = results.verdict["findings"]
    return {one["kind"] for one in found if one["severity"] == "warning"}, results.run["notes"]


@pytest.mark.slow
def test_a_queue_that_grows_is_overload_in_a_short_run_as_in_a_long_one():
    """However short: its latency is that of the queue, which must not hide that it grows."""
    for num_requests in (1500, 6000):
        assert "run.overloaded" in warnings_of(1000, 400.0, num_requests)[0]
        assert "run.overloaded" not in warnings_of(1000, 40.0, num_requests)[0]


def test_enough_requests_are_asked_that_a_queue_may_grow():
    for rate, num_requests in ((1.0, 2000), (100.0, 30_000), (1e5, 50_000)):
        asked = compare("olmoe-1b-7b", "h100-sxm", rate, 100, 20, {"ttft_s": "5"})
        assert asked["workload"]["num_requests"] == num_requests


@pytest.mark.parametrize(("num_input", "is_told"), [(5000, True), (4076, False)])
def test_requests_beyond_the_context_are_told_in_the_verdict_and_the_notes(num_input, is_told):
    """Its context is of 4,096 tokens."""
    kinds, notes = warnings_of(num_input, 0.5, 20)
    assert ("run.too_long" in kinds) == is_told
    assert any(note.startswith("20 of 20 requests") for note in notes) == is_told


@pytest.mark.parametrize(
    ("given", "size", "replicas"),
    [((), 2, [1, 2]), (("h100-sxm", 8), 8, [4, 8]), (("h100-sxm-8",), 8, [4, 8])],
)
def test_models_are_compared_on_equally_many_gpus_in_their_smallest_replicas(given, size, replicas):
    found = load_scenario(laid_out("mixtral-8x7b,qwen3-8b", *given)).deployments
    assert {one.cluster for one in found} == {f"h100-sxm-{size}"}
    assert [one.replicas for one in found] == replicas
    assert [one.parallel.tp for one in found] == [2, 1]


def test_a_model_of_several_nodes_fills_them():
    (found,) = load_scenario(laid_out("deepseek-v3")).deployments
    split = found.parallel
    assert found.cluster == "h100-sxm-16"
    assert split.tp * split.attention_dp * split.pp == 16


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_gpus": 1}, ("mixtral-8x7b", "--gpus 2 does")),
        ({"num_gpus": 3}, ("comes in 1, 2, 4, 8",)),
        ({"ttft": "p95=1.5"}, ("p95=1.5", "such as 1.5")),
        ({"models": "deepseek-v3", "cluster": "laptop-m4"}, ("deepseek-v3 on laptop-m4",)),
    ],
)
def test_what_cannot_be_run_says_what_would_do(given, words):
    with pytest.raises(UserError) as refusal:
        laid_out(**given)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_options_and_files_are_not_mixed(moesim, tmp_path):
    for given in (
        ("run", "mixtral_vs_llama2", "--rate", "3"),
        ("run", "mixtral_vs_llama2", "--from", "x"),
        ("run", "--from", "x", "--gpus", "2"),
        ("run", "--models", "qwen3-8b"),
    ):
        code, _, err = moesim(*given)
        assert (code, "error: " in err) == (2, True), err
    assert "--cluster, --rate, --input, --output, --ttft or --tpot" in err
    assert not list(tmp_path.iterdir())


def write_run_of(folder, table, **run):
    """A results folder as far as its differences from another one are looked for."""
    folder.mkdir()
    write_run(run, folder)
    pd.DataFrame(table).to_csv(folder / "summary.csv", index=False)
    return folder


def test_deployments_of_other_names_are_paired_in_their_order_under_both(moesim, tmp_path):
    first = {"deployment": ["MoE", "dense"], "tpot_p50_s": [0.01, 0.02]}
    second = {"deployment": ["dense2", "MoE2", "more"], "tpot_p50_s": [0.03, 0.04, 0.05]}
    tables = {"a": first, "b": second}
    folders = [write_run_of(tmp_path / name, table) for name, table in tables.items()]
    metrics, _ = diff(*folders)
    values = {name: (row["first"], row["second"]) for (name, _), row in metrics.iterrows()}
    assert values == {"MoE / dense2": (0.01, 0.03), "dense / MoE2": (0.02, 0.04)}
    code, out, _ = moesim("diff", "a", "b")
    assert (code, out.startswith("MoE / dense2 ")) == (0, True)
    third = write_run_of(tmp_path / "c", first | {"deployment": ["MoE", "dense2"]})
    assert set(diff(folders[1], third).metrics.index.get_level_values(0)) == {
        *("dense2", "MoE", "MoE2", "more")
    }


def test_a_run_and_a_training_have_nothing_to_compare(tmp_path):
    run = write_run_of(tmp_path / "run", {"deployment": ["A"], "dropped_share": [0.0]})
    training = {"deployment": ["A"], "dropped_share": [0.1]}
    other = write_run_of(tmp_path / "other", training, training={})
    with pytest.raises(UserError, match="name two of moesim run, or two of a training"):
        diff(run, other)


def test_other_traffic_and_another_program_are_differences_that_no_key_makes(tmp_path):
    table, scenario = {"deployment": ["A"], "tpot_p50_s": [0.01]}, {"workload": {"requests": "x"}}

    def write(revision, num_requests, mean, numpy):
        lengths = {"num_requests": num_requests, "input": {"mean": mean, "p50": 4.0}}
        facts = {"workload": lengths, "versions": {"moesim": "1", "numpy": numpy}}
        own = {"scenario": scenario, "revision": revision, **facts}
        return write_run_of(tmp_path / revision, table, **own)

    metrics, keys = diff(write("a", 10, 5.0, "2"), write("b", 9, 6.0, "3"))
    assert metrics.empty
    assert keys == {
        "run.json: workload.num_requests": (10, 9),
        "run.json: workload.input.mean": (5.0, 6.0),
        "run.json: versions.numpy": ("2", "3"),
        "run.json: revision": ("a", "b"),
    }


def test_plans_differ_in_what_they_recommend_and_ask(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        found = answer()
        found["recommended"] = {**found["recommended"], "gpus": 8 * seed}
        run = {**RUN, "question": {"seed": seed, "models": [{"model": "x"}, {"model": name}]}}
        PlanResults(run, Answer.model_validate(found)).write(tmp_path / name)
    metrics, keys = diff(tmp_path / "a", tmp_path / "b")
    assert metrics.loc["recommended"].loc["gpus"].tolist() == [8, 16, 8, 2]
    assert len(metrics) == 1
    assert keys == {"seed": (1, 2), "models.1.model": ("a", "b")}
    with pytest.raises(UserError, match=r"recommended\.toml"):
        recall_job(tmp_path / "a")
