"""How ``moesim validate`` reads tables: their format, their family, and whether they are known."""

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.lab.validation import known_rows, suites
from simulator.lab.validation.tables import read_table, values_of

pytestmark = pytest.mark.usefixtures("gemm_table")


def test_every_kind_of_file_gives_the_same_answers(moesim, tmp_path):
    pd.read_csv("gemm.csv").drop(columns="note").astype({"m": str}).to_parquet("gemm.parquet")
    pd.read_csv("gemm.csv", dtype=str).to_csv("gemm.csv.gz", index=False)
    seconds = []
    for name in ("gemm.csv", "gemm.csv.gz", "gemm.parquet"):
        assert moesim("validate", "kernels", "gemm", name, "--out", "answers.parquet")[0] == 0
        seconds.append(pd.read_parquet("answers.parquet")["predicted_kernel_s"].to_numpy())
    assert np.isfinite(seconds[0]).sum() == 2
    for other in seconds[1:]:
        np.testing.assert_array_equal(other, seconds[0])


def test_files_are_told_by_what_is_in_them(moesim):
    asked = pd.read_csv("gemm.csv", dtype=str, keep_default_na=False)
    asked.to_csv("plain.csv.gz", index=False, compression=None)
    asked.to_csv("packed.csv", index=False, compression="gzip")
    asked.to_parquet("table.txt")
    for name in ("plain.csv.gz", "packed.csv", "table.txt"):
        assert moesim("validate", "kernels", "gemm", name, "--out", "answers.csv")[0] == 0
        assert pd.read_csv("answers.csv")["predicted_kernel_s"].notna().sum() == 2


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
