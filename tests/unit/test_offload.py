"""Offloaded experts as files say them: what is refused, what would fit, and what a note tells."""

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.config.deployment import DeploymentSpec
from simulator.cost.offload import ExpertSize, OffloadRates, offloaded_s
from simulator.deployment.notes import describe_policies, notes_of
from simulator.deployment.plan import make_plan
from simulator.work.expert_cache import CacheUses
from tests.contracts.processes import PROJECT

SPEC = {"name": "own", "model": "mixtral-8x7b", "cluster": "desktop-rtx-4090"}
INT4 = {"weight_dtype": "int4"}


def plan_of(**keys):
    return make_plan(DeploymentSpec.model_validate({**SPEC, **keys}), 3, "file", PROJECT)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, r"does not fit: each GPU needs 26.2 GB .*offload = \{ slots = 6 \}"),
        ({"offload": {"slots": 7}}, r"what would fit: .*offload\.slots = 6 \(1 GPU"),
        ({"cluster": "rtx-4090-1"}, "what would fit: tp = 2(?!.*offload)"),
    ],
)
def test_mixtral_in_four_bits_does_not_fit_one_card_and_is_told_how_it_would(keys, told):
    """By offloading where the host of the cluster is described."""
    with pytest.raises(UserError, match=told):
        plan_of(**INT4, **keys)
    assert plan_of(**INT4, offload={"slots": 6}).serving.capacity.tokens > 2048


ONE = {"slots": 2}
REFUSED = [
    ({"model": "llama-2-7b", **INT4, "offload": ONE}, "is dense and has no experts to offload"),
    (
        {"cluster": "h100-sxm-2", "parallel": {"tp": 2}, **INT4, "offload": ONE},
        "experts of replicas of one GPU are offloaded, and this one has 2",
    ),
    (
        {"cluster": "h100-sxm-8", "parallel": {}, **INT4, "offload": ONE},
        r"cluster 'h100-sxm-8' has no \[host.dram\] in its file; add one",
    ),
    (
        {"cluster": "laptop-m4-max", **INT4, "offload": {**ONE, "tier": "storage", "uploads": 1}},
        r"uploads = 1 leaves experts to a processor, .* has no \[host.processor\]",
    ),
    ({**INT4, "offload": {"slots": 9}}, "slots must be at most the 8 experts of a layer"),
    (
        {**INT4, "offload": {**ONE, "uploads": 0}},
        "nothing is ever brought to the 2 slots, and caching 'lru' begins with none",
    ),
    (
        {"weight_dtype": "bf16", "offload": {"slots": 0}},
        r"the experts take 90.2 GB in bf16, and \[host.dram\] .* has 56.0 GB; tier = \"storage\"",
    ),
    (
        {**INT4, "offload": ONE, "overflow": {"kind": "capacity", "factor": 1.0}},
        "an overflow changes them; leave overflow or offload out",
    ),
    (
        {**INT4, "offload": {**ONE, "prefetching": {"kind": "successors"}}},
        r"routing 'lognormal' draws each layer by itself, .* cannot tell; .*next_layer.* hit_rate",
    ),
]


@pytest.mark.parametrize(("keys", "told"), REFUSED)
def test_what_cannot_be_offloaded_is_refused_in_one_line(keys, told):
    with pytest.raises(UserError, match=told) as refused:
        plan_of(**keys)
    assert "\n" not in str(refused.value)


def test_a_note_tells_what_is_found_and_what_travels():
    on_cpu = plan_of(**INT4, offload={"slots": 0, "uploads": 0})
    (note,) = [one for one in notes_of(on_cpu) if one.kind == "note.offload"]
    assert (note.facts["hit_rate"], note.facts["brought_bytes"]) == (0, 0)
    assert note.facts["below_bytes"] == pytest.approx(5.81e9, rel=1e-3)
    assert describe_policies(on_cpu)["offload"].startswith("in dram, 0 of a layer cached by lru")
    assert describe_policies(plan_of(model="llama-2-7b"))["offload"] is None


def count_uses(**counts):
    """One step of two layers of four used experts: the first layer asks for one, the second for two
    and leaves one to the processor.
    """
    usual = {"used": (4, 4), "held": (3, 1), "ahead": (0, 0), "uploaded": (1, 2), "below": (0, 1)}
    usual |= {"fetched": (0, 0), "pairs": (8, 8), "below_pairs": (0, 2)} | counts
    return CacheUses(**{f"{name}_SL": np.array([each]) for name, each in usual.items()})


AHEAD = {"ahead": (0, 1), "uploaded": (1, 1), "fetched": (0, 2)}
"""One of the second layer's two is fetched ahead, and a wrong one."""


@pytest.mark.parametrize(
    ("counts", "gpu_s", "beside_s", "flops_per_s", "wanted"),
    [
        # First: three experts held take 6 s, longer than a copy's 1.5, and the one that arrives 2.
        # Second: one held takes 2 s, less than two copies' 2.5, and the two that arrive 4.
        ({}, 8.0, 0.0, 0.0, [8.0, 6.5]),
        # The processor reads three experts in 3 s and multiplies two pairs in 6, after 0.5 s on
        # the way there and before 0.5 on the way back.
        ({}, 8.0, 0.0, 2.0, [8.0, 7.0]),
        ({}, 0.0, 0.0, 12.0, [1.5, 4.0]),
        ({}, 8.0, 0.0, 0.5, [8.0, 25.0]),
        # 6.5 s of idle links are enough for the two fetched ahead: one copy behind which 2 s follow
        # is hidden by two held.
        (AHEAD, 8.0, 0.0, 0.0, [8.0, 6.0]),
        # Links idle for 0.2 s of the first layer and 0.3 beside it, in which a fifth of 2.5 s of
        # fetching is done: 1.8 experts are late, 0.5 + 1.8 s, and 0.36 of work behind them.
        (AHEAD, 0.8, 0.3, 0.0, [1.7, 2.66]),
    ],
)
def test_experts_arrive_one_behind_another_and_are_computed_then(
    counts, gpu_s, beside_s, flops_per_s, wanted
):
    """A copy takes a second after half a second, and the processor reads as fast."""
    size = ExpertSize(weight_bytes=10.0, pair_flops=6.0)
    rates = OffloadRates(
        copy_bytes_per_s=10.0, latency_s=0.5, read_bytes_per_s=10.0, flops_per_s=flops_per_s
    )
    found = offloaded_s(count_uses(**counts), gpu_s, beside_s, size, rates)
    assert found.tolist() == [pytest.approx(wanted)]
