"""From moments of real steps to a calibration file."""

import contextlib
import time
import tomllib
from collections import defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from simulator.base.frozen import validate
from simulator.base.reading import read_toml
from simulator.calibration.host import measure, timing, training
from simulator.calibration.host.fit import fit_exchange, fit_steps
from simulator.calibration.host.layers import REPEATS, Sample, Shape, collect
from simulator.calibration.host.measure import (
    matrix_times,
    measure_pace,
    pruned_ratios,
    reference_seconds,
)
from simulator.calibration.host.timing import ROUNDS, calibration_toml
from simulator.config.host import HostCalibration, MatrixTable, load_any_calibration
from simulator.config.sparsity import TwoFour, Unstructured
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
    steps, later = (list(chain.from_iterable(shape.every_kind(num_ranks, turn))) for turn in (0, 1))
    assert len(steps) == len(shape.steps) * (REPEATS + 1)
    assert not {step.offset for step in steps} & {step.offset for step in later}
    for step in steps[:2]:
        run = backend.step(step)
        collect(samples, shape, job, step, run, np.ones(num_ranks))
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
    collect(samples, shape, job, later[1], run, np.ones(num_ranks))
    assert {sample.turn for found in samples.values() for sample in found} == (
        {0, 1} if filled else set()
    )


def test_products_are_timed_for_every_number_of_rows_over_the_reference(monkeypatch):
    shard = Shard(0, 1)
    paces = iter([1e-6, 4e-6, 1e-6, 1e-6])
    monkeypatch.setattr(measure, "reference_seconds", lambda _: next(paces))
    monkeypatch.setattr(measure, "_seconds", lambda _: 6e-6)
    assert matrix_times(shard, (1, 64), 1 << 12, 1 << 16) == pytest.approx([3.0, 6.0])


@pytest.mark.parametrize(
    "pruning", [Unstructured(kind="unstructured", sparsity=0.9), TwoFour(kind="two_four")]
)
def test_pruned_products_are_timed_against_whole_ones(pruning):
    [ratio] = pruned_ratios(Shard(0, 1), (4,), pruning, (64, 32))
    assert ratio > 0


SPREAD = 0.8**0.5 / 1.4
"""Of one round that takes three times as long as four others."""
REFERENCE_S = 1e-6 * 2**0.2
"""Geometric mean over rounds, one of which is twice as slow."""


@pytest.fixture(scope="module")
def rounds():
    """A calibration of next to nothing, whose products take three times as long in its second
    round, and whose reference twice as long in its third; and the order in which ranks were timed.
    """
    order, times = [], np.array([1.0, 100.0])

    class Ranks(InProcessBackend):
        def __init__(self, nodes, node_R, execution):
            super().__init__(len(node_R))
            order.append(len(node_R))

        def apply(self, function, *arguments):
            turn = (len(order) - 1) // 2
            if function is reference_seconds:
                return [1e-6 * (2.0 if turn == 2 else 1.0) for _ in self.shards]
            if function is not matrix_times:
                return super().apply(function, *arguments)
            return [(times * (3.0 if turn == 1 else 1.0)).tolist() for _ in self.shards]

    steps = ((1, 4, 0), (2, 1, 0))
    models = [
        Shape(32, 64, 4, 2, steps),
        Shape(32, 64, steps=(*steps, (2, 1, 8))),
        Shape(32, 64, steps=steps, is_split=True),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "RayBackend", Ranks)
        patch.setattr(timing, "count_cores", lambda: 2)
        patch.setattr(timing, "shapes", lambda: models)
        patch.setattr(timing, "ROWS", (1, 100))
        patch.setattr(timing, "SIZES", (1000,))
        patch.setattr(timing, "WORKING_BYTES", (1000,))
        patch.setattr(timing, "_PRUNED", (TwoFour(kind="two_four"),))
        patch.setattr(timing, "_PRUNED_ROWS", (1,))
        patch.setattr(training, "SHAPES", models[:2])
        patch.setattr(timing, "_EXPERTS", 4)
        patch.setattr(timing, "_EXPERT_BYTES", 1 << 12)
        yield timing.calibrate(None, [2, 1]), order


def test_parts_are_timed_in_rounds_over_the_whole_of_a_calibration(rounds):
    assert rounds[1] == [1, 2] * ROUNDS


def test_a_slow_round_is_left_out_of_the_times_and_told_by_their_spread(rounds):
    found, _ = rounds
    for tables in found.kernels:
        assert tables.reference_s == pytest.approx(REFERENCE_S)
        assert np.array(tables.matrix.seconds).ravel() == pytest.approx(
            REFERENCE_S * np.array([1.0, 100.0])
        )
        assert tables.matrix.spread == pytest.approx(SPREAD)
    fits = [found.engine, found.storage, *found.pruned]
    fits += [getattr(tables, name) for tables in found.kernels for name in ("experts", "training")]
    fits += [getattr(found.collectives[0], name) for name in ("dispatch", "combine", "all_reduce")]
    assert all(fit.spread is not None for fit in fits)
    for tables in found.kernels:
        for ratios in (tables.training.forward, tables.training.backward):
            assert set(ratios) == {"attention", "dense", "experts"}
            assert all(ratio > 0 for ratio in ratios.values())


def test_a_calibration_with_spreads_is_written_and_read(rounds):
    found, _ = rounds
    again = validate(HostCalibration, tomllib.loads(calibration_toml(found)), "again")
    assert again.kernels[0].matrix.spread == pytest.approx(SPREAD, rel=1e-3)
    assert again.kernels[0].reference_s == pytest.approx(REFERENCE_S, rel=1e-3)


@pytest.mark.parametrize(
    ("slower", "pace"), [(0.5, 0.56), (0.9, 1.0), (1.0, 1.0), (1.1, 1.0), (1.5, 1.33), (3.0, 2.66)]
)
def test_the_pace_is_what_the_reference_takes_longer_than_by_chance(rounds, slower, pace):
    class Ranks:
        def apply(self, function):
            assert function is reference_seconds
            return [REFERENCE_S * slower] * 2

    found = measure_pace(Ranks(), rounds[0].choose_tables(2, 1e8))
    assert found == pytest.approx(pace, rel=1e-2)
    assert measure_pace(Ranks(), None) == 1.0  # no machine's own calibration


def test_a_sample_is_told_as_while_the_reference_takes_its_mean():
    assert Sample(6e-3, 0.0, (), {}, pace_s=2e-6).at_pace(1e-6).seconds == pytest.approx(3e-3)


def test_one_thread_is_timed_by_its_own_clock(monkeypatch):
    """On which a call that sleeps, as one that other programs hold up, takes next to nothing."""
    monkeypatch.setattr(measure, "_MOST_CALLS", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone_s = measure._seconds([lambda: time.sleep(0.003)])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert alone_s < 0.002 < 0.003 <= measure._seconds([lambda: time.sleep(0.003)])


def test_a_calibration_is_written_where_execute_finds_it_and_no_shipped_file_is(
    moesim, monkeypatch, tmp_path
):
    shipped = validate(HostCalibration, read_toml(SHIPPED), "shipped")
    mine = shipped.model_copy(update={"title": "mine"})
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(timing, "calibrate", lambda *_: mine)
    monkeypatch.setattr("simulator.runtime.nodes.connect", contextlib.nullcontext)
    before = SHIPPED.read_bytes()
    code, _, err = moesim("calibrate", "cpu")
    assert code == 0, err
    assert str(tmp_path / "data") in "".join(err.split())
    assert load_any_calibration("this-machine", "test").title == "mine"
    assert SHIPPED.read_bytes() == before
    assert not (tmp_path / "cluster_configs").exists()
