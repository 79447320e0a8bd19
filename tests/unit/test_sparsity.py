"""``moesim sparsity`` as a user meets it: what it prints, writes and refuses."""

import json

import numpy as np
import pytest


def run_json(moesim, *words):
    code, out, err = moesim("sparsity", "--json", *words)
    assert code == 0, out + err
    return json.loads(out)


def test_it_tells_where_bytes_and_time_fall_and_writes_a_page(moesim, tmp_path):
    code, out, err = moesim("sparsity", "--machine", "a100-sxm", "--tokens", "16", "--out", "found")
    assert code == 0, out + err
    assert (
        "takes fewer bytes from 1% of its weights gone (16x16 blocks) to 89% (coo, 64-bit)" in out
    )
    assert "lie within the band" in out
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert rows["csr, 32-bit"][-1] == "66.7%"
    assert rows["csr, 16-bit"][-1] == "50.0%"
    assert rows["bitmask"][-1] == "6.2%"
    run = json.loads((tmp_path / "found/run.json").read_text(encoding="utf-8"))
    assert run["sparsity"]["out_features"] == 14336
    assert run["versions"]
    page = (tmp_path / "found/report.html").read_text(encoding="utf-8")
    for words in ("Sparse data", "compared, not fitted", "Wanda", "Flash-LLM, A100"):
        assert words in page
    assert "Measured on this machine" not in page
    assert moesim("sparsity", "--machine", "a100-sxm", "--out", "found")[0] == 0  # once more
    written = (tmp_path / "found/report.html").read_text(encoding="utf-8")
    code, out, err = moesim("report", "found")
    assert code == 0, out + err
    assert (tmp_path / "found/report.html").read_text(encoding="utf-8") == written


def test_zeros_of_a_file_are_counted(moesim, tmp_path):
    values = np.zeros((300, 200), np.float32)
    values[::3, ::4] = 1.5
    np.save(tmp_path / "inputs.npy", values)
    found = run_json(moesim, "--machine", "a100-sxm", "--data", "inputs.npy", "--dtype", "fp32")
    data = found["data"]
    assert (data["rows"], data["columns"], data["density"]) == (300, 200, 100 * 50 / 60000)
    by_name = {name: size for name, size, _ in data["formats"]}
    assert by_name["csr, 8-bit"] == 5000 * (4 + 1) + 4 * 301
    assert by_name["bitmask"] == 5000 * 4 + 60000 / 8


def test_times_are_of_the_machine_and_tokens_that_were_asked(moesim):
    found = run_json(moesim, "--machine", "this-machine", "--tokens", "8")["speeds"]
    assert {one["dtype"] for one in found} == {"fp32"}
    assert {one["tokens"] for one in found} == {8}
    assert {one["kernels"] for one in found} == {"csr", "two_four", "block"}
    for one in found:
        if one["kernels"] != "two_four":  # nothing is said beyond the ends of the tables
            assert one["sparsities"][0] >= 0.5
            assert one["sparsities"][-1] <= 0.95


def test_the_break_even_is_told_as_a_property_of_the_batch(moesim):
    code, out, err = moesim(
        "sparsity", "--machine", "this-machine", "--tokens", "16", "--tokens", "1024"
    )
    assert code == 0, out + err
    assert (
        "a property of kernels and batch. A rank on this machine's processor: csr is faster" in out
    )
    assert "with 16 tokens, and is faster from 81.6% gone with 1,024 tokens" in " ".join(
        out.split()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--matrix", "0x5"), "--matrix 0x5: must be ROWSxCOLUMNS"),
        (("--matrix", "14336"), "--matrix 14336: must be ROWSxCOLUMNS"),
        (("--data", "10x10@2"), "with a density from 0 to 1"),
        (("--data", "10x10"), "with a density from 0 to 1"),
        (("--data", "none.npy"), "none.npy: no such file"),
        (("--dtype", "bf17"), "--dtype: unknown number format 'bf17'"),
        (("--machine", "a100-sxn"), "a100-sxm"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(moesim, words, said):
    code, out, err = moesim("sparsity", *words)
    assert code == 2
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1
