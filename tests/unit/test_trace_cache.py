"""``moesim trace cache``: replays of the shipped recording, and what is refused."""

import json

import pytest

from simulator.base.errors import UserError
from simulator.commands.cache_trace import replay_recording
from tests.contracts.processes import PROJECT

RECORDING = PROJECT / "workloads/traces/stdlib-moe.npz"


def test_each_policy_is_replayed_with_each_number_of_slots(moesim):
    command = ("trace", "cache", str(RECORDING), "--model", "stdlib-moe", "--json")
    status, printed, told = moesim(*command, "--slots", "4", "--slots", "16")
    assert status == 0, told
    rows = json.loads(printed)
    assert {row["caching"] for row in rows} == {"lru", "lfu", "popularity"}
    for few, all_ in zip(rows[::2], rows[1::2], strict=True):
        assert (few["slots"], all_["slots"]) == (4, 16)
        assert 0 < few["hit_rate"] < all_["hit_rate"]
        assert few["uploads"] > all_["uploads"]
        assert few["ahead_rate"] == 0


@pytest.mark.parametrize(
    ("model", "streams", "told"),
    [
        ("llama-2-7b", 1, "is dense and has no experts to keep"),
        ("mixtral-8x7b", 1, "recorded 4 MoE layers, but the model has 32"),
        ("stdlib-moe", 1 << 20, "fewer than 1,048,576 streams; lower --streams"),
    ],
)
def test_what_cannot_be_replayed_is_refused(model, streams, told):
    with pytest.raises(UserError, match=told):
        replay_recording(RECORDING, model, streams=streams)
