"""The time that experts below the GPU's memory add is a piece of its own, and what would help is
tried.
"""

import pytest

from simulator import run
from simulator.config.deployment import DeploymentSpec
from simulator.deployment.plan import make_plan
from simulator.explanation.changes import list_changes
from simulator.results.explained import Queue
from tests.contracts.processes import PROJECT

SPEC = {
    "model": "olmoe-1b-7b",
    "cluster": "desktop-rtx-4090",
    "weight_dtype": "bf16",
    "scheduling": {"kind": "chunked", "token_budget": 64, "max_sequences": 4},
}
OFFLOADS = {
    "whole": None,
    "brought": {"slots": 16},
    "computed": {"slots": 16, "uploads": 0, "caching": {"kind": "popularity"}},
    "all held": {"slots": 64},
}


@pytest.fixture(scope="module")
def explained():
    """Waterfall and changes of each deployment, by its name."""
    scenario = {
        "workload": {
            "num_requests": 6,
            "requests": {
                "arrivals": {"kind": "closed_loop", "concurrency": 1},
                "lengths": {"kind": "fixed", "num_input": 20, "num_output": 20},
            },
        },
        "deployments": [
            {**SPEC, "name": name} | ({} if offload is None else {"offload": offload})
            for name, offload in OFFLOADS.items()
        ],
    }
    return run(scenario, explain=True).run["explanation"]


def test_what_lies_below_is_a_piece_of_its_own(explained):
    pieces = {name: one["waterfalls"][0]["pieces"] for name, one in explained.items()}
    assert "below" not in pieces["whole"]
    assert pieces["all held"]["below"] == pytest.approx(0.0, abs=1e-9)
    for name in ("brought", "computed"):
        (waterfall,) = explained[name]["waterfalls"]
        assert sum(pieces[name].values()) == pytest.approx(waterfall["token_s"], rel=1e-9)
        assert pieces[name]["below"] > 0
        share = pieces[name]["below"] / waterfall["token_s"]
        assert waterfall["limits"]["below"] == pytest.approx(share, abs=0.15)
        assert 0.3 * share < waterfall["doubled"]["below"] < 0.51 * waterfall["limits"]["below"]
        for piece in ("attention", "dense", "experts", "host"):
            assert pieces[name][piece] == pytest.approx(pieces["whole"][piece], rel=0.02)


def test_more_slots_help_where_experts_lie_below(explained):
    tried = {one["text"]: one for one in explained["brought"]["changes"]["tried"]}
    assert tried["24 experts of a layer on the GPU"]["gain"] > 0
    assert not any("on the GPU" in one["text"] for one in explained["whole"]["changes"]["tried"])


@pytest.mark.parametrize("name", OFFLOADS)
def test_changes_of_caches_are_keys_that_a_scenario_takes(name):
    spec = DeploymentSpec.model_validate({**SPEC, "name": name, "offload": OFFLOADS[name]})
    plan = make_plan(spec, 3, "test", PROJECT)
    changes = list_changes(plan, 0, Queue(0.0, "none"))
    own = [one for one in changes if one.overrides[0].startswith("deployments.0.offload=")]
    assert bool(own) == (OFFLOADS[name] is not None)
    texts = {one.text for one in own}
    assert ("missing experts brought to the GPU" in texts) == (name == "computed")
    assert any("computed by the processor" in text for text in texts) == (
        name in ("brought", "all held")
    )
