"""Every file of `simulator/workload/traces`, `arrivals` and `lengths` keeps its family's promises.
Kinds are discovered, never listed.

An arrival process or length distribution shows how it is written in its schema's `examples`; those
are what is tried here.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from simulator.base import plugins
from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.base.reading import read_toml
from simulator.config.workload import NamedWorkloadSpec, WorkloadSpec
from simulator.workload.requests import describe, load_requests, read_trace

ROOT = Path(__file__).parents[2]


def examples(family):
    return [
        pytest.param({"kind": kind, **table}, id=f"{kind}-{number}")
        for kind in plugins.available(family)
        for number, table in enumerate(list_examples(family, kind))
    ]


def list_examples(family, kind):
    config = plugins.policy_class(family, kind, "test").model_config
    return config.get("json_schema_extra", {}).get("examples", [])


@pytest.mark.parametrize("family", ["arrivals", "lengths"])
def test_a_kind_shows_how_it_is_written(family):
    silent = [kind for kind in plugins.available(family) if not list_examples(family, kind)]
    assert not silent, (
        f"{family} without an example: {', '.join(silent)}; give `model_config` one, under "
        "`json_schema_extra`"
    )


@pytest.mark.parametrize("table", examples("arrivals"))
class TestArrivals:
    def test_times_are_finite_sorted_and_as_many_as_asked(self, table):
        process = plugins.build("arrivals", table, "test")
        for num_requests in (0, 1, 2, 1000):
            times = process.arrival_s(num_requests, np.random.default_rng(0))
            assert times.shape == (num_requests,)
            assert times.dtype == np.float64
            assert np.isfinite(times).all()
            assert (times >= 0).all()
            assert (np.diff(times) >= 0).all()

    def test_the_same_stream_gives_the_same_times(self, table):
        process = plugins.build("arrivals", table, "test")
        first, again = (process.arrival_s(500, np.random.default_rng(3)) for _ in range(2))
        assert first.tobytes() == again.tobytes()

    def test_a_longer_draw_begins_with_the_shorter_one(self, table):
        process = plugins.build("arrivals", table, "test")
        short, long = (process.arrival_s(n, np.random.default_rng(3)) for n in (300, 3000))
        np.testing.assert_array_equal(short, long[:300])

    def test_a_closed_loop_says_its_concurrency_and_others_none(self, table):
        process = plugins.build("arrivals", table, "test")
        times = process.arrival_s(100, np.random.default_rng(0))
        assert (process.concurrency is None) == bool(times[-1] > 0)

    def test_fields_must_be_positive(self, table):
        for name, value in table.items():
            if isinstance(value, float):
                for wrong in (0.0, -1.0, float("nan"), float("inf"), "5", True):
                    with pytest.raises(UserError, match=name):
                        plugins.build("arrivals", {**table, name: wrong}, "test")


@pytest.mark.parametrize("table", examples("lengths"))
class TestLengths:
    def test_lengths_are_whole_at_least_one_and_as_many_as_asked(self, table):
        distribution = plugins.build("lengths", table, "test")
        for num_requests in (0, 1, 1000):
            for lengths in distribution.draw(num_requests, np.random.default_rng(0)):
                assert lengths.shape == (num_requests,)
                assert lengths.dtype == np.int64
                assert (lengths >= 1).all()

    def test_the_same_stream_gives_the_same_lengths_and_a_longer_draw_begins_with_them(self, table):
        distribution = plugins.build("lengths", table, "test")
        for short, again, long in zip(
            *(distribution.draw(n, np.random.default_rng(3)) for n in (200, 200, 900)), strict=True
        ):
            assert short.tobytes() == again.tobytes()
            np.testing.assert_array_equal(short, long[:200])


FOREIGN = {
    "noise.bin": bytes(range(256)) * 4,
    "other.csv": b"time,price\n1,2\n",
    "other.json": b'{"model_type": "mixtral", "hidden_size": 4096}',
    "other.jsonl": b'{"event": "start"}\n{"event": "stop"}\n',
    "list.json": b"[1, 2, 3]",
    "text.txt": b"to whom it may concern\n",
}


@pytest.mark.parametrize("name", list(available_files("workloads/requests")))
class TestShippedWorkloads:
    def test_it_names_its_sources_and_licence(self, name):
        path = available_files("workloads/requests")[name]
        spec = validate(NamedWorkloadSpec, read_toml(path), str(path))
        assert spec.title
        assert spec.licence
        assert {"arrivals", "lengths"} <= set(spec.sources)

    def test_it_loads_and_two_seeds_differ(self, name):
        spec = WorkloadSpec(requests=name, num_requests=500)
        traces = [load_requests(spec, Path("."), seed) for seed in (0, 0, 1)]
        assert all(trace.num_requests == 500 for trace in traces)
        assert traces[0].arrival_s.tobytes() == traces[1].arrival_s.tobytes()
        assert traces[0].num_input.tobytes() == traces[1].num_input.tobytes()
        assert traces[0].arrival_s.tobytes() != traces[2].arrival_s.tobytes()
        assert json.dumps(describe(traces[0]), allow_nan=False)

    def test_all_of_it_loads_as_its_file_says(self, name):
        trace = load_requests(WorkloadSpec(requests=name), Path("."), 0)
        assert trace.arrival_s[0] == 0
        assert trace.num_requests > 1000


def test_foreign_files_are_refused_with_what_was_seen(tmp_path):
    for name, content in FOREIGN.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        for packed in (name, f"{name}.gz"):
            with pytest.raises(
                UserError, match="not a request trace of a known format; it"
            ) as refusal:
                read_trace(tmp_path / packed)
            assert "\n" not in str(refusal.value)
