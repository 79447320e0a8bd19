"""``moesim validate`` as a user meets it: its help, and one line for wrong input."""

import pytest

from simulator.lab.validation import suites

pytestmark = pytest.mark.usefixtures("gemm_table")


def test_help_lists_columns_of_every_family(moesim):
    code, out, _ = moesim("validate", "kernels", "--help")
    words = " ".join(out.split())
    assert code == 0
    for name in suites.families():
        assert f" {name}: gpu, " in words
    for said in (
        "gemm: gpu, gemm_dtype, m, n, k; measured, for errors: latency_ms",
        "dispatch_avg_t_us",
        "message_size",
    ):
        assert said in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kernels", "gem", "gemm.csv"), ["gem", "did you mean 'gemm'"]),
        (("kernels", "gemm", "absent.csv"), ["absent.csv", "no such file"]),
        (("kernels", "gemm", "folder.csv"), ["folder.csv", "is a folder"]),
        (("kernels", "gemm", "empty.csv"), ["empty.csv", "cannot be read as CSV"]),
        (("kernels", "gemm", "head.csv"), ["head.csv", "has no rows"]),
        (
            ("kernels", "gemm", "other.csv"),
            ["other.csv", "missing column 'gemm_dtype'", "did you mean 'gem_dtype'"],
        ),
        (("kernels", "gemm", "text.parquet"), ["text.parquet", "has no rows, read as CSV"]),
        (("kernels", "gemm", "long.csv"), ["long.csv", "rows have more cells than the first line"]),
        (("kernels", "gemm", "torn.csv.gz"), ["torn.csv.gz", "not a whole packed file"]),
        (
            ("serving", "gemm.csv"),
            [
                "gemm.csv",
                (
                    "missing columns 'id', 'backend', 'model_path', 'system', 'mode', "
                    "'isl', 'osl'; it has gpu"
                ),
            ],
        ),
        (
            ("kernels", "gemm", "shout.csv"),
            ["missing columns 'gemm_dtype', 'k'; did you mean 'gemm_type' for 'gemm_dtype'?"],
        ),
        (("published", "gemm.csv"), ["gemm.csv", "its columns are those of no"]),
        (("kernels", "gemm", "gemm.csv", "--out", "answers.txt"), ["answers.txt", "must end in"]),
        (("kernels", "gemm", "gemm.csv", "--out", "folder.csv"), ["folder.csv", "is a folder"]),
        (("kernels", "gemm", "gemm.csv", "--out", "nowhere/a.csv"), ["nowhere", "does not exist"]),
        (("kernels", "gemm", "gemm.csv", "--out", "gemm.csv"), ["gemm.csv", "is the table itself"]),
        (
            ("kernels", "gemm", "gemm.csv", "--out", "/proc/a.csv"),
            ["/proc/a.csv", "cannot be written"],
        ),
        (("--json", "kernels", "gemm", "gemm.csv"), ["--json", "must stand behind 'kernels'"]),
        (("--measurements", "nowhere"), ["nowhere", "no such folder"]),
        (("--out", "gemm.csv"), ["--out gemm.csv", "is a file"]),
        (("kernel",), ["kernel", "moesim validate --help"]),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(moesim, tmp_path, arguments, said):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("gpu,gemm_dtype,m,n,k\n")
    (tmp_path / "other.csv").write_text("gpu,gem_dtype,m,n,k\nh100,bfloat16,1,2,3\n")
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "long.csv").write_text("gpu,gemm_dtype,m,n,k\nh100,bfloat16,1,2,3,\n")
    (tmp_path / "torn.csv.gz").write_bytes(b"\x1f\x8b and no more")
    (tmp_path / "shout.csv").write_text("gpu,gemm_type,m,n,x\nh100,bfloat16,1,2,3\n")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = moesim("validate", *arguments)
    assert (code, out) == (2, ""), err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    for words in said:
        assert words in lines[0]
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
