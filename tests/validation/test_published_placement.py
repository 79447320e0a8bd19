"""Published gains of placing experts, and of copies, on 8 MI355X (ROCm/ATOM, pull request 1210).

DeepSeek-V4-Pro, EP 8 with data-parallel attention, prefill of random prompts of 8,192 tokens at
concurrency 128 with 8,192 tokens a rank and step, 6.48 requests/s with experts in order: rearranged
+16.7 %, 64 copies +24.4 %, the hottest experts everywhere +34.0 %. Given: the model, the machine by
its data sheet (its kernels as the nearest measured ones, Blackwell's), copies by rank (ATOM's maps)
and one skew, which nobody printed: popularity spread by 1.25, where 1.06 gives DeepSeek-R1's
published imbalance. Nothing else is fitted; gains and requests per second come out.
"""

import shutil
from pathlib import Path

import pytest

from simulator.lab.validation.published._runs import make, run_step

HERE = Path(__file__).parent / "mi355x"
SIGMA = 1.25
PUBLISHED = {
    "rearranged": ({"kind": "eplb"}, 0.167),
    "64 copies": ({"kind": "eplb", "num_slots": 448}, 0.244),
    "64 biased copies": ({"kind": "biased", "num_slots": 448}, 0.340),
}


@pytest.fixture(scope="module")
def seconds_of(tmp_path_factory):
    """Seconds of a full step with experts placed so."""
    folder = tmp_path_factory.mktemp("mi355x")
    shutil.copytree(HERE, folder, dirs_exist_ok=True)

    def measure(placement):
        deployment = {
            "model": "deepseek-v4-pro.toml",
            "cluster": "mi355x",
            "parallel": {"attention_dp": 8, "ep": 8},
            "routing": {"kind": "lognormal", "sigma": SIGMA},
            "dispatch": {"kind": "per_rank"},
            "placement": placement,
            "replica_choice": {"kind": "nearest"},
        }
        return run_step(make(deployment), 1, 8192, 0).seconds

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        in_order_s = measure({"kind": "contiguous"})
        placed_s = {name: measure(placement) for name, (placement, _) in PUBLISHED.items()}
    return in_order_s, placed_s


def test_gains_are_in_the_published_order_and_within_eight_points(seconds_of):
    in_order_s, placed_s = seconds_of
    gains = {name: in_order_s / found_s - 1 for name, found_s in placed_s.items()}
    assert 0 < gains["rearranged"] < gains["64 copies"] < gains["64 biased copies"]
    for name, (_, published) in PUBLISHED.items():
        assert gains[name] == pytest.approx(published, abs=0.08), name


def test_requests_per_second_are_near_the_published_ones(seconds_of):
    """Steps of one prompt on each rank, with nothing between them."""
    in_order_s, _ = seconds_of
    assert 8 / in_order_s == pytest.approx(6.48, rel=0.2)
