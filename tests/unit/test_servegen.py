"""Client models of ServeGen: drawing a day of requests from rates and probability tables."""

import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.workload.requests import read_trace
from tests.shared import shared_file


def written(tmp_path, data, name):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def clients():
    pdf = {
        "input_tokens": "{10: 0.5, 20: 0.5}",
        "output_tokens": "{7: 1.0}",
        "reason_ratio": "{0.0: 1.0}",
    }
    return {
        "chunk-0-trace.csv": (
            "0,1.0,2.0,Gamma,0.25,4.0\n600,0,0,,0,0\n1200,2.0,1.5,Weibull,0.7,1.0\n"
        ),
        "chunk-0-dataset.json": json.dumps(
            {"0": pdf, "1200": {**pdf, "output_tokens": "{9: 1.0}"}}
        ),
        "chunk-3-trace.csv": "0,0.5,0,,0,0\n600,0,0,,0,0\n1200,0,0,,0,0\n",
        "chunk-3-dataset.json": json.dumps(
            {"0": pdf, "600": {"input_tokens": "{}", "output_tokens": "{}"}}
        ),
    }


def test_servegen_folders_and_archives_are_the_same(tmp_path):
    folder = tmp_path / "clients"
    folder.mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in clients().items():
            (folder / name).write_text(text)
            member = tarfile.TarInfo(f"model/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    found = read_trace(folder)
    assert found.num_requests == pytest.approx(600 + 300 + 1200, abs=3)
    late = found.arrival_s > 1100
    assert set(found.num_output[late]) == {9}
    assert set(found.num_output[~late]) == {7}
    assert set(found.num_input) == {10, 20}
    assert not ((found.arrival_s > 605) & (found.arrival_s < 1190)).any()
    for name, data in (
        ("c.tar", packed.getvalue()),
        ("c.gz", gzip.compress(packed.getvalue())),
        ("c.xz", lzma.compress(packed.getvalue())),
    ):
        again = read_trace(written(tmp_path, data, name))
        assert again.arrival_s.tobytes() == found.arrival_s.tobytes()
        assert again.num_input.tobytes() == found.num_input.tobytes()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "chunk-0-trace.csv",
            "0,1.0\n",
            "line 1: must be window_start_s, rate, cv, pattern, ..., got '0,1.0'",
        ),
        ("chunk-0-trace.csv", "0,1.0,2.0,Pareto,1,1\n", "the pattern Gamma or Weibull"),
        ("chunk-0-trace.csv", "0,1e12,2.0,Gamma,1,1\n", "requests, and 50,000,000 are the most"),
        ("chunk-0-trace.csv", "600,1,1,Gamma,1,1\n0,1,1,Gamma,1,1\n", "window starts must rise"),
        ("chunk-0-dataset.json", "{\n", "must map window starts"),
        ("chunk-0-dataset.json", None, "client 0 has no chunk-0-dataset.json"),
    ],
)
def test_wrong_clients_are_refused(tmp_path, name, text, message):
    for member, content in {**clients(), name: text}.items():
        if content is not None:
            (tmp_path / member).write_text(content)
    with pytest.raises(UserError) as found:
        read_trace(tmp_path)
    assert message in str(found.value)


@pytest.mark.slow
@pytest.mark.measured
def test_servegen_clients_give_a_day_of_requests_at_their_rates():
    path = shared_file("traces/requests/servegen/deepseek-r1_clients_0-35.tar.xz")
    trace = read_trace(path)
    with tarfile.open(path) as archive:
        tables = [
            archive.extractfile(member).read().decode()
            for member in archive
            if member.name.endswith("-trace.csv")
        ]
    rates = np.sum(
        [[float(line.split(",")[1]) for line in table.splitlines()] for table in tables], axis=0
    )
    counts = np.bincount((trace.arrival_s // 600).astype(int), minlength=144)
    assert trace.num_requests == pytest.approx(600 * rates.sum(), rel=1e-3)
    assert (
        abs(counts - 600 * rates).max() < 80
    )  # 36 clients rounded, and times counted from the first request
    assert "36 clients" in trace.notes[0]
    assert trace.num_output.mean() > trace.num_input.mean()
