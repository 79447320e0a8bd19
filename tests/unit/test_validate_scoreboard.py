"""The scores and targets that ``moesim validate`` tells: of a table, a folder and what ships."""

import json
from pathlib import Path

import pandas as pd
import pytest

from simulator.lab.results.judgement import IN_SAMPLE
from simulator.lab.results.scores import SCORE_COLUMNS
from simulator.lab.validation import Answered, known_rows, published
from simulator.lab.validation.tables import read_table

pytestmark = pytest.mark.usefixtures("gemm_table")


@pytest.fixture
def no_published(monkeypatch):
    """Published figures take a while; one made up stands for them."""
    row = (
        "published",
        "a made up case",
        "case 1",
        "throughput",
        "tokens/s",
        100.0,
        90.0,
        80.0,
        110.0,
        "ok",
    )
    rows = pd.DataFrame([row], columns=list(SCORE_COLUMNS))
    monkeypatch.setattr(
        published, "run", lambda *_: Answered("published", "shipped cases", rows, rows)
    )


@pytest.mark.parametrize("where", ["other.csv", "known.csv"])
def test_targets_are_judged_with_models_left_out_where_rows_are_in_sample(
    moesim, monkeypatch, where
):
    table = pd.read_csv("gemm.csv", dtype=str, keep_default_na=False)
    table.assign(m="8", latency_ms="0.9").to_csv("known.csv", index=False)
    table.assign(m="8", latency_ms="0.8").to_csv("other.csv", index=False)
    sketch = known_rows.sketch(read_table(Path("known.csv")).values)
    monkeypatch.setattr(known_rows, "_sketches", lambda: [sketch])
    code, out, _ = moesim("validate", "kernels", "gemm", where, "--report", "page.html")
    page = Path("page.html").read_text()
    assert code == 0
    in_sample = where == "known.csv"
    assert ("gemm, in sample" in out) == in_sample
    said = "targets with models left out: 1 of 1 met" if in_sample else "targets: 0 of 1 met"
    assert said in out
    assert said in page
    assert ("Models left out" in page) == in_sample, "of other rows it is no figure"
    assert IN_SAMPLE.split(".")[0] in (page if in_sample else IN_SAMPLE)
    target = next(line for line in out.splitlines() if "Dense GEMM kernels" in line)
    assert target.split()[-1] == ("yes" if in_sample else "no"), (
        "4-5 % with shapes left out; these rows are made up"
    )
    for words in ("median, mean, p90: of the absolute error", "in band: share"):
        assert words in out
    assert "<dt>In band</dt>" in page


def test_json_is_alone_on_standard_output(moesim):
    code, out, _ = moesim(
        "validate", "kernels", "gemm", "gemm.csv", "--json", "--report", "page.html"
    )
    found = json.loads(out)
    assert code == 0
    assert {row["group"]: row["rows"] for row in found["scores"]}["h100 bf16"] >= 2
    assert {
        "scores",
        "targets",
        "left_out",
        "unsupported",
        "extrapolated",
        "tables",
        "skipped",
    } == set(found)
    assert sum(row["rows"] for row in found["unsupported"]) == 5


@pytest.mark.slow
def test_alone_it_answers_what_ships_and_says_what_was_not_read(moesim, tmp_path, no_published):
    code, out, err = moesim("validate")
    assert code == 0
    assert "MOESIM_MEASUREMENTS" in err
    assert "published throughput" in out
    folder = tmp_path / "reports" / "out" / "validate"
    files = {"run.json", "scores.csv", "targets.csv", "reasons.csv", "rows.parquet", "report.html"}
    assert {path.name for path in folder.iterdir()} == files
    assert moesim("validate")[0] == 0, "an earlier scoreboard is replaced"
    (folder / "notes.txt").write_text("mine")
    assert moesim("validate")[0] == 2


@pytest.mark.slow
def test_accuracy_and_history_are_written_beside_the_scoreboard(moesim, tmp_path, no_published):
    arguments = ("validate", "--accuracy", "accuracy.md", "--history", "past/accuracy.jsonl")
    for _ in range(2):
        assert moesim(*arguments)[0] == 0
    text = (tmp_path / "accuracy.md").read_text()
    assert text.count("<!-- accuracy: published -->") == 1
    assert "| Published throughput | 1 | 10.0 % | 10.0 % | 100.0 % |" in text
    assert len((tmp_path / "past" / "accuracy.jsonl").read_text().splitlines()) == 2
    page = (tmp_path / "reports" / "out" / "validate" / "report.html").read_text()
    assert "Median error over time" in page
    code, _, err = moesim("validate", "--history", "x.jsonl", "published")
    assert code == 2
    assert "--history: is of 'moesim validate' as a whole; leave out 'published'" in err
    code, _, err = moesim("validate", "--json", "published")
    assert code == 2
    assert "--json: must stand behind 'published'" in err
    code, _, err = moesim("validate", "--history", tmp_path)
    assert code == 2
    assert "is a folder; name a file" in err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "environment"])
def test_tables_of_a_folder_are_told_by_their_columns(
    moesim, gemm_table, tmp_path, monkeypatch, no_published, how
):
    folder = tmp_path / "measured"
    folder.mkdir()
    (folder / "whatever.csv").write_text(gemm_table)
    (folder / "broken.csv").write_text("")
    (folder / "foreign.csv").write_text("a,b\n1,2\n")
    (folder / "micro.csv").write_text(gemm_table.replace("latency_ms", "latency_us"))
    (folder / "README.md").write_text("not a table")
    arguments = ["--measurements", folder] if how == "option" else []
    if how == "environment":
        monkeypatch.setenv("MOESIM_MEASUREMENTS", str(folder))
    code, out, err = moesim("validate", *arguments, "--json", "--out", "here")
    found = json.loads(out)
    assert code == 0
    assert [(entry["suite"], entry["rows"]) for entry in found["tables"]] == [
        ("gemm", 7),
        ("published", 1),
    ]
    assert set(found["skipped"]) == {"broken.csv", "foreign.csv", "micro.csv"}
    assert (
        "of gemm, but it has none of the measured ones: latency_ms" in found["skipped"]["micro.csv"]
    )
    assert err.count("skipped: ") == 3
    assert json.loads((tmp_path / "here" / "run.json").read_text())["skipped"] == found["skipped"]
    rows = pd.read_parquet(tmp_path / "here" / "rows.parquet")
    assert len(rows) == len(pd.read_csv("gemm.csv")) + 1
