"""``moesim validate``: rows come back with answers or with why there is none, tables are read in
any format, scores and targets are told, and wrong input is one line.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.lab.results.scores import SCORE_COLUMNS
from simulator.lab.validation import Answered, known_rows, published, suites
from simulator.lab.validation.tables import read_table, values_of

pytestmark = pytest.mark.usefixtures("gemm_table")


def test_rows_come_back_as_they_were_with_answers(moesim, tmp_path):
    code, _, err = moesim("validate", "kernels", "gemm", "gemm.csv", "--out", "answers.csv")
    assert (code, err.count("answers.csv")) == (0, 1)
    texts = pd.read_csv("answers.csv", dtype=str, keep_default_na=False)
    before = pd.read_csv("gemm.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(texts[list(before.columns)], before)
    assert list(texts.columns[len(before.columns) :]) == [
        "predicted_kernel_s",
        "low_kernel_s",
        "high_kernel_s",
        "status",
    ]
    numbers = pd.read_csv("answers.csv")
    assert numbers["status"].str.split(":").str[0].tolist() == ["ok"] * 2 + ["unsupported"] * 5
    assert numbers["predicted_kernel_s"].notna().tolist() == [True] * 2 + [False] * 5
    answered = numbers.iloc[:2]
    assert (answered["low_kernel_s"] <= answered["predicted_kernel_s"]).all()
    assert (answered["predicted_kernel_s"] <= answered["high_kernel_s"]).all()


def test_rows_that_cannot_be_compared_are_answered_and_counted(moesim):
    table = pd.read_csv("gemm.csv", dtype=str, keep_default_na=False)
    table.loc[0, "latency_ms"] = "0"
    table.loc[1, "latency_ms"] = "out of memory"
    table.loc[2, "latency_ms"] = ""
    table.to_csv("gaps.csv", index=False)
    said = "gaps.csv: 3 of 7 rows have no usable latency_ms; they are answered, but not compared"
    code, out, _ = moesim(
        "validate", "kernels", "gemm", "gaps.csv", "--out", "answers.csv", "--report", "page.html"
    )
    assert code == 0
    assert said in out
    assert said in Path("page.html").read_text()
    assert pd.read_csv("answers.csv")["predicted_kernel_s"].notna().sum() == 2
    _, out, _ = moesim("validate", "kernels", "gemm", "gaps.csv", "--json")
    assert json.loads(out)["tables"][0]["unusable"] == {"latency_ms": 3}


def test_a_cell_that_cannot_be_used_is_quoted(moesim):
    told = {
        "h100,bfloat16,abc,8,8": "m is not a number: abc",
        "h100,bfloat16,,8,8": "m is empty",
        "h100,bfloat16,inf,8,8": "m is not a number: inf",
        "h100,bfloat16,1e30,8,8": "m is 1e30",
        ",bfloat16,8,8,8": "gpu is empty",
        "h100,,8,8,8": "gemm_dtype is empty",
        "h10,bfloat16,8,8,8": "no calibrated accelerator 'h10'; near it: h100-pcie, h100-sxm",
        "rubin,bfloat16,8,8,8": "no calibrated accelerator 'rubin'",
    }
    Path("cells.csv").write_text("gpu,gemm_dtype,m,n,k\n" + "\n".join(told) + "\n")
    assert moesim("validate", "kernels", "gemm", "cells.csv", "--out", "answers.csv")[0] == 0
    for status, why in zip(pd.read_csv("answers.csv")["status"], told.values(), strict=True):
        assert status.startswith(f"unsupported: {why}")


def test_a_cell_is_quoted_by_its_columns_own_name(moesim):
    columns = "gpu,engine,node_num,hidden_size,num_token,num_topk,num_experts,dispatch_avg_t_us"
    Path("exchange.csv").write_text(f"{columns}\nh100,sglang,1,7168,few,8,256,1\n")
    assert moesim("validate", "kernels", "alltoall", "exchange.csv", "--out", "answers.csv")[0] == 0
    assert "num_token is not a number: few" in pd.read_csv("answers.csv")["status"].item()


def test_formats_are_read_in_other_spellings(moesim):
    names = ("bfloat16", "bf16", "BFLOAT16", "fp8", "FP8")
    Path("names.csv").write_text(
        "gpu,gemm_dtype,m,n,k\n" + "".join(f"h100,{name},512,4096,4096\n" for name in names)
    )
    assert moesim("validate", "kernels", "gemm", "names.csv", "--out", "answers.csv")[0] == 0
    answers = pd.read_csv("answers.csv")
    assert answers["gemm_dtype"].tolist() == list(names)
    assert answers["predicted_kernel_s"].notna().all()
    assert answers["predicted_kernel_s"].nunique() == 2


def test_every_kind_of_file_gives_the_same_answers_and_is_told_by_what_is_in_it(moesim):
    asked = pd.read_csv("gemm.csv", dtype=str, keep_default_na=False)
    asked.to_csv("gemm.csv.gz", index=False)
    asked.to_csv("plain.csv.gz", index=False, compression=None)
    asked.to_csv("packed.csv", index=False, compression="gzip")
    asked.to_parquet("table.txt")
    seconds = []
    for name in ("gemm.csv", "gemm.csv.gz", "plain.csv.gz", "packed.csv", "table.txt"):
        assert moesim("validate", "kernels", "gemm", name, "--out", "answers.parquet")[0] == 0
        seconds.append(pd.read_parquet("answers.parquet")["predicted_kernel_s"].to_numpy())
    assert np.isfinite(seconds[0]).sum() == 2
    for other in seconds[1:]:
        np.testing.assert_array_equal(other, seconds[0])


def test_a_part_of_a_known_table_is_known_in_any_order_and_format():
    rng = np.random.default_rng(0)
    texts = pd.DataFrame(
        {
            "gpu": "h100",
            "m": rng.integers(1, 99999, 9000).astype(str),
            "latency_ms": rng.random(9000).astype(str),
        }
    )
    kept = known_rows.sketch(values_of(texts))
    part = texts.sample(1500, random_state=1)[["latency_ms", "gpu", "m"]].reset_index(drop=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_rows, "_sketches", lambda: [kept])
        assert known_rows.is_known(values_of(part))
        assert known_rows.is_known(values_of(part.assign(note="mine", m=part["m"].astype(float))))
        assert not known_rows.is_known(values_of(part.assign(gpu="h200")))
        assert not known_rows.is_known(values_of(part.drop(columns="m")))


@pytest.mark.parametrize("name", ["twice.csv", "twice.csv.gz"])
def test_columns_of_one_name_are_refused(tmp_path, name):
    path = tmp_path / name
    pd.DataFrame([["h100", "8", "9", ""]], columns=["gpu", "m", " m", ""]).to_csv(path, index=False)
    with pytest.raises(UserError, match="two columns are called 'm'; rename one"):
        read_table(path)


def test_versions_stay_texts_and_odd_cells_are_not_numbers(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("engine_ver,m,empty,mixed\n0.10,1,,3\n0.9,2,,x\n")
    values = read_table(path).values
    assert values["engine_ver"].tolist() == ["0.10", "0.9"]
    assert values["m"].tolist() == [1, 2]
    assert values["empty"].isna().all()
    assert values["mixed"].iloc[0] == 3
    assert np.isnan(values["mixed"].iloc[1])


def test_a_table_that_two_suites_can_read_is_the_more_particular_ones():
    everything = {name: set(suites.family_of(name).columns) for name in suites.families()}
    for name, columns in everything.items():
        measured = [measure.column for measure in suites.family_of(name).measures]
        if measured:
            table = pd.DataFrame({column: ["1"] for column in [*columns, *measured]})
            assert suites.suite_of(table) == name


@pytest.fixture
def no_published(monkeypatch):
    """Published figures take a while; one made up stands for them."""
    told = ("published", "a made up case", "case 1", "throughput", "tokens/s")
    rows = pd.DataFrame([(*told, 100.0, 90.0, 80.0, 110.0, "ok")], columns=list(SCORE_COLUMNS))
    monkeypatch.setattr(
        published, "run", lambda *_: Answered("published", "shipped cases", rows, rows)
    )


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kernels", "gem", "gemm.csv"), ["gem", "did you mean 'gemm'"]),
        (("kernels", "gemm", "absent.csv"), ["absent.csv", "no such file"]),
        (("kernels", "gemm", "head.csv"), ["head.csv", "has no rows"]),
        (("kernels", "gemm", "other.csv"), ["other.csv", "'gemm_dtype'", "mean 'gem_dtype'"]),
        (("kernels", "gemm", "long.csv"), ["long.csv", "rows have more cells than the first line"]),
        (("kernels", "gemm", "torn.csv.gz"), ["torn.csv.gz", "not a whole packed file"]),
        (("serving", "gemm.csv"), ["gemm.csv", "missing columns 'id'", "it has gpu"]),
        (("published", "gemm.csv"), ["gemm.csv", "its columns are those of no"]),
        (("kernels", "gemm", "gemm.csv", "--out", "answers.txt"), ["answers.txt", "must end in"]),
        (("kernels", "gemm", "gemm.csv", "--out", "gemm.csv"), ["gemm.csv", "is the table itself"]),
        (("kernels", "gemm", "gemm.csv", "--out", "/proc/a.csv"), ["/proc/a.csv", "written"]),
        (("--json", "kernels", "gemm", "gemm.csv"), ["--json", "must stand behind 'kernels'"]),
        (("--measurements", "nowhere"), ["nowhere", "no such folder"]),
        (("--out", "gemm.csv"), ["--out gemm.csv", "is a file"]),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(moesim, tmp_path, arguments, said):
    (tmp_path / "head.csv").write_text("gpu,gemm_dtype,m,n,k\n")
    (tmp_path / "other.csv").write_text("gpu,gem_dtype,m,n,k\nh100,bfloat16,1,2,3\n")
    (tmp_path / "long.csv").write_text("gpu,gemm_dtype,m,n,k\nh100,bfloat16,1,2,3,\n")
    (tmp_path / "torn.csv.gz").write_bytes(b"\x1f\x8b and no more")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = moesim("validate", *arguments)
    assert (code, out) == (2, ""), err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    for words in said:
        assert words in lines[0]
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
