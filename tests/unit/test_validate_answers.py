"""``moesim validate kernels``: a table's rows come back with answers, or with why there is none."""

import json
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.usefixtures("gemm_table")


def test_rows_come_back_as_they_were_with_answers(moesim, tmp_path):
    code, out, err = moesim("validate", "kernels", "gemm", "gemm.csv", "--out", "answers.csv")
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
    for said in (
        "h100 bf16",
        "median",
        "p90",
        "no calibrated accelerator 'rubin'",
        "Dense GEMM kernels",
        "10/30",
    ):
        assert said in out


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


@pytest.mark.parametrize("count", [1, 3])
def test_few_rows_and_the_same_rows_twice(moesim, count):
    table = (
        pd.read_csv("gemm.csv", dtype=str, keep_default_na=False)
        .iloc[[0] * count]
        .assign(id="same", further="column")
    )
    table.to_csv("few.csv", index=False)
    code, _, _ = moesim(
        "validate", "kernels", "gemm", "few.csv", "--out", "answers.csv", "--report", "page.html"
    )
    answers = pd.read_csv("answers.csv")
    assert (code, len(answers), answers["predicted_kernel_s"].nunique()) == (0, count, 1)
    assert "further" in answers.columns


def test_a_table_without_measurements_is_answered_too(moesim):
    pd.read_csv("gemm.csv").drop(columns="latency_ms").to_csv("asked.csv", index=False)
    code, out, _ = moesim(
        "validate", "kernels", "gemm", "asked.csv", "--out", "answers.csv", "--report", "page.html"
    )
    assert code == 0
    assert "asked.csv: no column latency_ms, needed for errors; the table has note" in out
    assert pd.read_csv("answers.csv")["predicted_kernel_s"].notna().sum() == 2


def test_a_measured_column_in_another_unit_is_named(moesim):
    pd.read_csv("gemm.csv").rename(columns={"latency_ms": "latency_us"}).to_csv(
        "micro.csv", index=False
    )
    code, out, _ = moesim("validate", "kernels", "gemm", "micro.csv", "--report", "page.html")
    said = "micro.csv: no column latency_ms, needed for errors; the table has latency_us"
    assert code == 0
    assert said in out
    assert "Nothing was measured" not in out
    assert said in Path("page.html").read_text()


def test_a_cell_that_cannot_be_used_is_quoted(moesim):
    told = {
        "h100,bfloat16,abc,8,8": "m is not a number: abc",
        "h100,bfloat16,,8,8": "m is empty",
        "h100,bfloat16,inf,8,8": "m is not a number: inf",
        "h100,bfloat16,1e30,8,8": "m is 1e30, larger than anything that is counted",
        ",bfloat16,8,8,8": "gpu is empty",
        "h100,,8,8,8": "gemm_dtype is empty",
        "h10,bfloat16,8,8,8": (
            "no calibrated accelerator 'h10'; near it: h100-pcie, h100-sxm; "
            "'moesim list accelerators' has all"
        ),
        "rubin,bfloat16,8,8,8": (
            "no calibrated accelerator 'rubin'; 'moesim list accelerators' has all that are"
        ),
    }
    Path("cells.csv").write_text("gpu,gemm_dtype,m,n,k\n" + "\n".join(told) + "\n")
    assert moesim("validate", "kernels", "gemm", "cells.csv", "--out", "answers.csv")[0] == 0
    assert pd.read_csv("answers.csv")["status"].tolist() == [
        f"unsupported: {why}" for why in told.values()
    ]


def test_a_cell_is_quoted_by_its_columns_own_name(moesim):
    columns = "gpu,engine,node_num,hidden_size,num_token,num_topk,num_experts,dispatch_avg_t_us,combine_avg_t_us"
    Path("exchange.csv").write_text(f"{columns}\nh100,sglang,1,7168,few,8,256,1,1\n")
    assert moesim("validate", "kernels", "alltoall", "exchange.csv", "--out", "answers.csv")[0] == 0
    assert pd.read_csv("answers.csv")["status"].tolist() == [
        "unsupported: num_token is not a number: few"
    ]


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


@pytest.mark.parametrize(
    ("count", "said"),
    [(1, None), (2, "1 row is repeated"), (3, "2 rows are repeated; each counts")],
)
def test_rows_that_are_repeated_are_remarked(moesim, count, said):
    pd.read_csv("gemm.csv", dtype=str, keep_default_na=False).iloc[[0] * count + [1]].to_csv(
        "same.csv", index=False
    )
    _, out, _ = moesim("validate", "kernels", "gemm", "same.csv")
    assert (f"same.csv: {said}" in out) if said else ("repeated" not in out)
