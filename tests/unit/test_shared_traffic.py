"""Small runs in which caches and experts travel beside steps: one of each, as a quick look; the
laws look further.
"""

import numpy as np
import pytest

from simulator.engine.timeline import serve


@pytest.mark.parametrize("fidelity", ["rank", "message"])
def test_caches_travel_between_pools_and_arrive(tiny, fidelity):
    prefill = {"parallel": {"attention_dp": 2, "ep": 2}, "replicas": 1}
    plan = tiny.plan(
        "moe",
        attention_dp=2,
        ep=2,
        replicas=1,
        engine="sglang",
        network_speed=0.01,
        prefill=prefill,
    )
    served = serve(plan, tiny.trace(6, 300.0, longest_input=64, longest_output=6), fidelity)
    requests = served.requests_table()
    assert (requests["transfer_s"] > 0).any()
    assert np.isfinite(requests["finish_s"]).all()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_experts_move_and_what_they_carried_is_counted(tiny, fidelity, asynchronous):
    plan = tiny.plan(
        "moe",
        attention_dp=4,
        ep=4,
        replicas=1,
        network_speed=0.001,
        routing={"kind": "lognormal", "sigma": 1.5, "num_domains": 2},
        rebalancing={"kind": "incremental", "every_s": 0.02, "asynchronous": asynchronous},
    )
    served = serve(plan, tiny.trace(20, 200.0, longest_input=32, longest_output=20), fidelity)
    assert served.rebalances
    assert np.isfinite(served.requests_table()["finish_s"]).all()
