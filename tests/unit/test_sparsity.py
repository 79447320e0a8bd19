"""``moesim sparsity`` as a user meets it: what it prints, writes and refuses."""

import json

import numpy as np
import pytest


def run_json(moesim, *words):
    code, out, err = moesim("sparsity", "--json", *words)
    assert code == 0, out + err
    return json.loads(out)


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
