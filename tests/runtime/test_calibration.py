"""From moments of real steps to a calibration file."""

# ruff: noqa: E402 (what follows needs torch, and is skipped without)

import tomllib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs pip install 'moesim[real]'")

from simulator.base.frozen import validate
from simulator.base.reading import read_toml
from simulator.calibration.host.fit import fit_exchange, fit_steps
from simulator.calibration.host.layers import REPEATS, Sample, Shape, collect
from simulator.calibration.host.measure import matrix_seconds, pruned_ratios
from simulator.calibration.host.timing import calibration_toml
from simulator.config.host import HostCalibration, MatrixTable
from simulator.config.pruning import TwoFour, Unstructured
from simulator.runtime.in_process import InProcessBackend
from simulator.runtime.shard import Shard

SHIPPED = Path(__file__).parents[2] / "cluster_configs" / "calibration" / "this-machine.toml"
MATRIX = MatrixTable(
    kind="measured",
    source="a test",
    rows=(1, 100),
    sizes=(1000,),
    working_bytes=(1000,),
    seconds=(((1e-6, 1e-4),),),
)


def test_a_file_that_was_written_reads_the_same():
    shipped = validate(HostCalibration, read_toml(SHIPPED), "shipped")
    again = validate(HostCalibration, tomllib.loads(calibration_toml(shipped)), "again")
    assert again == shipped


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_fit_finds_the_constant_and_the_slopes_though_some_samples_were_held_up(noise):
    rng = np.random.default_rng(3)
    samples = []
    for _ in range(400):
        values, rows = float(rng.integers(1, 10_000)), float(rng.integers(1, 100))
        product_s = float(MATRIX.seconds_for(np.array([rows]), 1000, 1000)[0])
        seconds = (2e-4 + 3e-8 * values + product_s) * (1 + noise * rng.standard_normal())
        held_up = 5.0 if rng.random() < 0.05 else 1.0
        samples.append(Sample(seconds * held_up, 1000, [(rows, 1000)], {"values": values}))
    found = fit_steps(samples, MATRIX, ("values",), "a test")
    assert found.seconds["call"] == pytest.approx(2e-4, rel=0.05)
    assert found.seconds["values"] == pytest.approx(3e-8, rel=0.05)
    assert found.median_error <= noise + 0.01


def test_an_amount_that_costs_nothing_is_never_given_a_negative_price():
    samples = [
        Sample(1e-3 - 1e-6 * values, 1000, [], {"values": float(values)})
        for values in range(1, 200)
    ]
    assert fit_steps(samples, MATRIX, ("values",), "a test").seconds["values"] == 0.0


def test_an_exchange_is_a_latency_a_rate_and_a_wait_that_more_work_does_not_explain():
    samples, waits = [], []
    rng = np.random.default_rng(1)
    for num_bytes in rng.integers(0, 10**7, 300):
        samples.append(Sample(1e-3 + 1e-9 * num_bytes, 1000, [], {"bytes": float(num_bytes)}))
        spread = float(rng.integers(0, 1000))
        waits.append(Sample(2e-4 + 1e-6 * spread, 1000, [], {"spread": spread}))
    found = fit_exchange(samples, waits, "a test")
    assert found.latency_s == pytest.approx(1e-3, rel=0.01)
    assert found.seconds_for(np.array([1e6]))[0] == pytest.approx(1e-3, rel=0.01)
    assert found.stagger_s == pytest.approx(2e-4, rel=0.02)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(
    ("shape", "kinds"),
    [
        (Shape(32, 64, 4, 2, ((2, 4, 0),)), {"router", "experts", "prompt"}),
        (Shape(32, 64, steps=((2, 4, 0), (2, 1, 8))), {"ffn", "prompt", "decode"}),
        (Shape(32, 64, steps=((2, 4, 0),), is_split=True), set()),
    ],
)
def test_every_moment_of_a_timed_model_is_explained(shape, kinds, num_ranks):
    samples = defaultdict(list)
    job = shape.job(num_ranks, np.random.default_rng(0))
    backend = InProcessBackend(num_ranks)
    backend.load(job)
    steps = list(shape.every_step(num_ranks))
    assert len(steps) == len(shape.steps) * (REPEATS + 1)
    for step in steps[:2]:
        collect(samples, shape, job, step, backend.step(step))
    backend.close()
    if num_ranks > 1:
        kinds = kinds | ({"collective", "collective wait"} if shape.is_split else set())
        kinds = kinds | (
            {"dispatch", "combine", "dispatch wait", "combine wait", "pack", "unpack"}
            if shape.num_experts
            else set()
        )
    filled = {name for name, found in samples.items() if found}
    assert filled - {"decode"} == kinds - {"decode"}
    assert all(sample.seconds > 0 for found in samples.values() for sample in found)


def test_products_are_timed_for_every_number_of_rows():
    shard = Shard(0, 1)
    seconds = matrix_seconds(shard, (1, 64), 1 << 12, 1 << 16)
    assert len(seconds) == 2
    assert all(0 < second < 1 for second in seconds)


@pytest.mark.parametrize(
    "pruning", [Unstructured(kind="unstructured", sparsity=0.9), TwoFour(kind="two_four")]
)
def test_pruned_products_are_timed_against_whole_ones(pruning):
    [ratio] = pruned_ratios(Shard(0, 1), (4,), pruning, (64, 32))
    assert ratio > 0
