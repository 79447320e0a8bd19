"""Experts on disk: outputs equal the whole model's, hits equal a direct replay, and no more experts
are in memory than there are slots.
"""

import json

import numpy as np
import pytest
import torch

from simulator.base.errors import UserError
from simulator.calibration.host.timing import describe_storage, time_reads, write_experts
from simulator.commands.execute import execute
from simulator.runtime.job import Step, place_streams
from simulator.runtime.layers.cached_experts import ExpertFile
from simulator.work.expert_cache import replay_cache
from tests.runtime.equality import BF16, FP32, STEPS, check_job, running

MOE = {"num_experts": 8, "top_k": 2}
SHARED = {"num_shared_experts": 1, "shared_intermediate_size": 24}
BIASED = {"has_expert_bias": True}
CACHING = ["lru", "lfu", "popularity"]


def plan_of(real, caching="lru", slots=3, model=None, **keys):
    offload = {"tier": "storage", "slots": slots, "caching": {"kind": caching}}
    routing = {"kind": "lognormal", "sigma": 1.0, "persistence": 0.5}
    return real.plan(
        model or {**MOE, **SHARED},
        cluster="this-machine-1",
        offload=offload | keys.pop("offload", {}),
        routing=routing,
        **keys,
    )


@pytest.mark.parametrize("caching", CACHING)
@pytest.mark.parametrize("slots", [0, 3, 8])
def test_outputs_equal_the_whole_models(real, caching, slots):
    check_job(real.job(plan_of(real, caching, slots)))


@pytest.mark.parametrize("model", [{**MOE, **BIASED}, {**MOE, "is_gated": False}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", FP32), ("bf16", BF16)])
def test_experts_of_every_shape_and_format_are_read_back_as_they_were(
    real, model, dtype, tolerance
):
    formats = dict.fromkeys(("weight_dtype", "dispatch_dtype", "combine_dtype"), dtype)
    check_job(real.job(plan_of(real, model=model, **formats)), STEPS[:2], tolerance)


@pytest.mark.parametrize("caching", CACHING)
@pytest.mark.parametrize("sequences", [1, 3])
def test_hits_equal_a_direct_replay_and_memory_is_bounded(real, caching, sequences):
    slots, count = 3, 40
    job = real.job(plan_of(real, caching, slots))
    own = job.offload
    ids_SLX = np.stack(
        [own.ids_LTK[:, place_streams(n, sequences)].reshape(2, -1) for n in range(count)]
    )
    plain = replay_cache(own.rules, ids_SLX, own.earlier_LTK, 8)
    with running(job) as (backend, _):
        experts = backend.shards[0]._model.cached_experts
        for number in range(count):
            step = Step(number, sequences, 1, 6, number)
            reads = backend.step(step)[0].reads_L
            assert [one.used for one in reads] == plain.used_SL[number].tolist()
            assert [one.held for one in reads] == plain.held_SL[number].tolist()
            for one, layer in zip(reads, experts, strict=True):
                assert one.read_bytes == (one.used - one.held) * layer._file.expert_bytes
                assert (one.read_s > 0) == (one.used > one.held)
                assert len(layer.held) <= slots
    assert 0 < plain.hit_rate < 1


def test_a_file_gives_back_what_was_written(tmp_path):
    file = ExpertFile(5, 1000)
    rng = np.random.default_rng(1)
    written = [torch.from_numpy(rng.integers(0, 256, 1000, dtype=np.uint8)) for _ in range(5)]
    for expert in (3, 0, 4, 1, 2):
        file.write(expert, written[expert])
    file.flush()
    for expert in (2, 2, 0, 4):
        assert torch.equal(file.read(expert), written[expert])
    assert file.read_s > 0
    file.close()


def test_the_disk_is_timed():
    with write_experts() as file:
        rates = [time_reads(file, turn) for turn in (0, 1)]
    storage = describe_storage(rates, "a test")
    assert 1e6 < storage.bytes_per_s < 1e12
    assert storage.free_bytes > 0


@pytest.mark.parametrize(
    ("offload", "told"),
    [
        ({"slots": 0, "uploads": 0}, r"has no \[host.processor\]"),
        ({"prefetching": {"kind": "next_layer"}}, "prefetching can be simulated, but not executed"),
    ],
)
def test_what_is_only_simulated_is_refused(real, offload, told):
    with pytest.raises(UserError, match=told):
        real.job(plan_of(real, offload=offload))


SCENARIO = {
    "seed": 3,
    "workload": {
        "requests": {
            "arrivals": {"kind": "poisson", "rate_per_s": 2.0},
            "lengths": {"kind": "fixed", "num_input": 16, "num_output": 16},
        },
        "num_requests": 4,
    },
    "execution": {
        "prompts": 2,
        "prompt_tokens": 8,
        "sequences": 1,
        "context_tokens": 8,
        "steps": 30,
    },
    "deployments": [
        {
            "name": "on disk",
            "model": "stdlib-moe",
            "cluster": "this-machine-1",
            "offload": {"tier": "storage", "slots": 5},
        }
    ],
}


def test_a_run_says_what_was_found_and_read_beside_its_prediction(tmp_path):
    executed = execute(SCENARIO, folder=tmp_path / "out", backend="in_process")
    assert executed.summary["largest_difference"].max() < FP32
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["deployments"]["on disk"]
    caches = {cache["kind"]: cache for cache in facts["caches"]}
    assert set(caches) == {"prompt", "decode"}
    for cache in caches.values():
        assert 0 < cache["held"] < cache["used"]
        assert cache["hit_rate"] == pytest.approx(cache["held"] / cache["used"])
        assert cache["hit_rate"] == pytest.approx(cache["predicted_hit_rate"], abs=0.15)
        assert min(cache["read_bytes"], cache["read_s"], cache["predicted_read_s"]) > 0
    assert "of its experts in memory (predicted:" in (tmp_path / "out" / "report.html").read_text()
