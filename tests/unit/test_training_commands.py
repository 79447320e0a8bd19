"""Training by the command line: what ``run`` and ``plan`` print and write, and which options they
refuse.
"""

import json

import pytest

TRAINING = """
name = "small"
[training]
sequence_tokens = 512
global_batch = 8
total_tokens = 1e9
[[deployments]]
name = "MoE"
model = "olmoe-1b-7b"
cluster = "h100-sxm"
num_gpus = 4
parallel = { pp = 2, ep = 2 }
[[deployments]]
name = "dense"
dense_of = { model = "olmoe-1b-7b", equal = "active_params" }
cluster = "h100-sxm"
num_gpus = 4
parallel = { tp = 2, cp = 2 }
later = []
"""
QUESTION = """
name = "small"
[training]
sequence_tokens = 512
global_batch = 4
total_tokens = 1e9
[targets]
days = 3
[[models]]
model = "olmoe-1b-7b"
[[clusters]]
cluster = "h100-sxm"
max_gpus = 2
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "small.toml").write_text(TRAINING)
    (tmp_path / "question.toml").write_text(QUESTION)


def test_run_prints_the_comparison_and_writes_a_folder_that_report_shows(moesim, files, tmp_path):
    code, out, err = moesim("run", "small.toml", "--out", "out")
    assert code == 0
    assert "report: out/report.html" in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("run.json", "summary.csv", "spans.parquet", "timeline.json", "report.html"),
    }
    assert moesim("report", "out")[0] == 0
    assert moesim("run", "small.toml", "--out", "out")[0] == 0
    quality = "training.quality={ as_good_as = 'dense' }"
    code, out, _ = moesim("run", "small.toml", "--out", "out", "--json", "--set", quality)
    found = json.loads(out)
    assert found["verdict"]["headline"]
    assert [row["deployment"] for row in found["summary"]] == ["MoE", "dense"]


def test_options_of_serving_are_refused_by_name(moesim, files):
    for option in (("--explain",), ("--fidelity", "rank"), ("--workers", "2")):
        code, _, err = moesim("run", "small.toml", *option)
        assert code == 2
        assert "leave it out" in err
    code, _, err = moesim("run", "small.toml", "--seeds", "2")
    assert (code, "training scenario" in err and "without a sweep" in err) == (2, True)
    code, _, err = moesim("plan", "question.toml", "--workers", "2")
    assert (code, "a plan of training does not take it" in err) == (2, True)


def test_plan_recommends_a_scenario_that_runs(moesim, files):
    code, out, err = moesim("plan", "question.toml", "--out", "planned")
    assert code == 0
    assert "The cheapest training in 3 days: olmoe-1b-7b" in out
    assert "recommended: moesim run planned/recommended.toml" in err
    assert moesim("run", "planned/recommended.toml", "--out", "run")[0] == 0
    assert moesim("report", "planned")[0] == 0
    code, out, _ = moesim("plan", "question.toml", "--json", "--set", "targets.days=0.001")
    assert code == 3
    assert not any(row["keeps_target"] for row in json.loads(out)["candidates"])
    assert moesim("run", "question.toml")[0] == 2
    assert moesim("plan", "small.toml")[0] == 2
    assert moesim("check", "question.toml")[0] == moesim("check", "small.toml")[0] == 0
