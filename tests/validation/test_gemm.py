"""How far dense products are from the kernels that they were fitted on, and what the family says of
rows it knows little of.

Tables: NVIDIA aiconfigurator-core 0.12.0, Apache-2.0. Each limit is the target: 10 % median, 30 %
at the 90th percentile.
"""

import numpy as np
import pandas as pd
import pytest

from simulator.config.calibration import load_calibration
from simulator.lab.calibration.published import fit_table
from simulator.lab.validation import OK
from simulator.lab.validation.kernels import _fitting as fitting
from simulator.lab.validation.kernels.gemm import Gemm
from tests.shared import shared_file


def rows(**columns):
    table = {"gpu": "h100", "gemm_dtype": "bfloat16", "m": 64, "n": 4096, "k": 4096} | columns
    longest = max((len(value) for value in table.values() if isinstance(value, list)), default=1)
    return pd.DataFrame(
        {
            name: value if isinstance(value, list) else [value] * longest
            for name, value in table.items()
        }
    )


@pytest.mark.measured
@pytest.mark.parametrize(
    ("gpu", "dtype", "median", "tail"),
    [
        ("h100", "bfloat16", 0.1, 0.3),
        ("h100", "fp8", 0.1, 0.3),
        ("h100", "fp8_block", 0.1, 0.3),
        ("b200", "bfloat16", 0.1, 0.3),
        ("b200", "fp8", 0.1, 0.3),
        ("b200", "fp8_block", 0.1, 0.3),
        ("b200", "nvfp4", 0.1, 0.3),
    ],
)
def test_dense_products(gpu, dtype, median, tail):
    table = pd.read_csv(shared_file("measurements/gemm.csv.gz")).query(
        f"gpu == '{gpu}' and gemm_dtype == '{dtype}'"
    )
    answers = Gemm().answer(table)
    assert set(answers.status) == {OK}
    error = answers.seconds[:, 0] / (table.latency_ms / 1e3) - 1
    assert np.median(np.abs(error)) <= median
    assert np.quantile(np.abs(error), 0.9) <= tail
    assert abs(np.median(error)) <= 0.02
    inside = (answers.low[:, 0] <= table.latency_ms / 1e3) & (
        table.latency_ms / 1e3 <= answers.high[:, 0]
    )
    assert 0.75 <= inside.mean() <= 0.85


@pytest.mark.measured
@pytest.mark.slow
@pytest.mark.parametrize("number", [1, pytest.param(None, marks=pytest.mark.soak, id="all")])
def test_the_committed_tables_are_what_the_command_fits(number, monkeypatch):
    """So many of the formats, of which each takes the same way."""
    plan = fitting.load_plan("gemm")
    few = plan.model_copy(update={"entries": plan.entries[:number]})
    monkeypatch.setattr(fitting, "load_plan", lambda _: few)
    for family, tables in fit_table("gemm", shared_file("measurements")).items():
        committed = load_calibration(family, "test").gemm
        for engine, entries in tables.items():
            for dtype, entry in entries.items():
                found = committed[engine][dtype].model_dump(exclude_defaults=True)
                assert found["compute_fraction"] == pytest.approx(
                    entry["compute_fraction"], rel=0.01
                ), (family, dtype)
                assert found["floor_s"] == pytest.approx(entry["floor_s"], rel=0.01), (
                    family,
                    dtype,
                )
                assert found.get("band", [1, 1]) == pytest.approx(
                    entry.get("band", [1, 1]), rel=0.01
                ), (family, dtype)


def test_launching_from_python_is_added_to_the_kernels_that_were_timed_so_and_only_there():
    block = Gemm().answer(rows(gemm_dtype="fp8_block", engine=["vllm", "trtllm"]))
    assert block.seconds[0, 0] > 50e-6 > block.seconds[1, 0]
    np.testing.assert_array_equal(
        Gemm().answer(rows(gemm_dtype="fp8_block")).seconds[0], block.seconds[0]
    )


def test_sizes_outside_the_measured_range_are_extrapolated():
    answers = Gemm().answer(rows(m=[64, 100_000], k=[16, 4096]))
    assert answers.status == [
        "extrapolated: k outside the measured range",
        "extrapolated: m outside the measured range",
    ]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"gemm_dtype": "ternary"}, "no number format 'ternary'"),
    ],
)
def test_what_cannot_be_answered_says_why(columns, why):
    answers = Gemm().answer(rows(**columns))
    assert answers.status[0].startswith(f"unsupported: {why}")
    assert np.isnan(answers.seconds).all()


def test_more_bandwidth_helps_few_rows_and_not_many():
    few, many = (
        rows(gpu=["h100", "h200"], m=1, n=8192, k=8192),
        rows(gpu=["h100", "h200"], m=16_384, n=8192, k=8192),
    )
    few_s, many_s = (Gemm().answer(table).seconds[:, 0] for table in (few, many))
    assert few_s[0] / few_s[1] > 1.2
    assert many_s[0] / many_s[1] < 1.05


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        "float16",
        "fp8",
        "fp8_block",
        "fp8_static",
        "nvfp4",
        "mxfp4",
        "int8_wo",
        "int4_wo",
        "sq",
    ],
)
@pytest.mark.parametrize(
    "gpu",
    ["h100_sxm", "h200", "a100", "l40s", "b200", "b300", "gb200", "rtx_pro_6000_server", "mi300x"],
)
def test_every_format_is_answered_everywhere_and_more_rows_never_take_less_time(gpu, dtype):
    answers = Gemm().answer(rows(gpu=gpu, gemm_dtype=dtype, m=list(range(17, 4000, 7))))
    assert not any(status.startswith("unsupported") for status in answers.status)
    assert (np.diff(answers.seconds[:, 0]) >= -1e-18).all()
    assert ((answers.low <= answers.seconds) & (answers.seconds <= answers.high)).all()
