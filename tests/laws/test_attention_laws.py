"""Laws of looking back: never faster than the peaks, never less time for more work, and one formula
for every door.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.config.accelerator import load_accelerator
from simulator.config.calibration import load_calibration
from simulator.config.mixers.gqa import GroupedQueryAttention
from simulator.config.mixers.mla import LatentAttention
from simulator.cost.compute.roofline import Roofline
from simulator.cost.kernels.attention import NUM_SUMS, Rates, kernels_s, work_s
from simulator.work.context import NO_WINDOW, context_kernel, total_sums, uniform_sums

MODELS = {}
NAMES = ("h100-sxm", "b200-sxm", "l40s", "a100-sxm", "mi300x", "apple-m4-max")
ENGINES = ("any", "vllm", "sglang", "trtllm")
SLACK = 1 + 1e-9

mixers = st.one_of(
    st.builds(
        lambda kv, group, size, window: GroupedQueryAttention(
            kind="gqa", num_heads=kv * group, num_kv_heads=kv, head_size=size, window=window
        ),
        st.sampled_from([1, 2, 8, 32]),
        st.sampled_from([1, 4, 8]),
        st.sampled_from([64, 96, 128, 256]),
        st.sampled_from([None, 128, 4096]),
    ),
    st.builds(
        lambda heads: LatentAttention(
            kind="mla",
            num_heads=heads,
            query_rank=1536,
            kv_rank=512,
            nope_head_size=128,
            rope_head_size=64,
            value_head_size=128,
        ),
        st.sampled_from([1, 16, 128]),
    ),
)
phases = st.sampled_from(["prefill", "decode"])
sequences = st.lists(
    st.tuples(st.integers(0, 50_000), st.integers(2, 5000)), min_size=1, max_size=12
)


for name in NAMES:
    accelerator = load_accelerator(name, "test")
    calibration = load_calibration(accelerator.calibration, "test")
    MODELS |= {
        (name, engine): Roofline().prepare(accelerator, calibration.choose_engine(engine))
        for engine in ENGINES
    }


def priced(name, engine, mixer, cache, phase, batch):
    roofline = MODELS[name, engine]
    looking = context_kernel(mixer.context_terms()[0], 1, cache)
    rates = roofline.context_rates(looking, phase)
    context, new = np.array(batch).T
    if phase == "decode":
        new = np.ones_like(new)
    sums = total_sums(
        context, new, looking.window + int(rates.window_block), looking.compression, rates.tile_rows
    )
    exact = total_sums(context, new, looking.window, looking.compression, 1.0)
    return rates.floor_s + work_s(np.array(rates), sums), looking, exact, roofline.accelerator


@given(
    st.sampled_from(NAMES),
    st.sampled_from(ENGINES),
    mixers,
    st.sampled_from(["bf16", "fp8"]),
    phases,
    sequences,
)
def test_no_kernel_beats_the_vendor_peaks(name, engine, mixer, cache, phase, batch):
    seconds, looking, exact, accelerator = priced(name, engine, mixer, cache, phase, batch)
    flops = looking.prefill_flops if phase == "prefill" else looking.decode_flops
    peak = accelerator.flops_per_s("fp8" if cache == "fp8" else "bf16")
    assert seconds * SLACK >= exact[0] * flops / peak
    assert seconds * SLACK >= exact[1] * looking.decode_bytes / accelerator.memory_bytes_per_s


@given(
    st.sampled_from(NAMES),
    st.sampled_from(ENGINES),
    mixers,
    st.sampled_from(["bf16", "fp8"]),
    phases,
    sequences,
    st.data(),
)
def test_more_sequences_tokens_or_context_never_take_less_time(
    name, engine, mixer, cache, phase, batch, data
):
    base = priced(name, engine, mixer, cache, phase, batch)[0]
    one = data.draw(st.integers(0, len(batch) - 1))
    more = data.draw(st.integers(1, 5000))
    context, new = batch[one]
    longer = [*batch[:one], (context + more, new), *batch[one + 1 :]]
    wider = [*batch[:one], (context, new + more), *batch[one + 1 :]]
    for changed in (longer, wider, [*batch, (context, new)]):
        assert base <= priced(name, engine, mixer, cache, phase, changed)[0] * SLACK


@given(sequences)
def test_the_order_of_sequences_does_not_matter(batch):
    mixer = GroupedQueryAttention(kind="gqa", num_heads=8, num_kv_heads=2, head_size=128)
    forward, backward = (
        priced("h100-sxm", "any", mixer, "bf16", "prefill", order)[0]
        for order in (batch, batch[::-1])
    )
    assert forward == pytest.approx(backward, rel=1e-12)


@given(
    st.integers(1, 300),
    st.integers(0, 9000),
    st.integers(1, 900),
    st.sampled_from([128, NO_WINDOW]),
    st.sampled_from([1.0, 32.0]),
)
def test_a_table_of_equal_sequences_sums_as_the_engine_does(
    batch_size, context, new, window, tile_rows
):
    column = [np.array([value], dtype=np.int64) for value in (batch_size, context, new, window, 1)]
    at_once = uniform_sums(*column, np.array([tile_rows]))[0]
    each = total_sums(np.full(batch_size, context), np.full(batch_size, new), window, 1, tile_rows)
    assert at_once == pytest.approx(each, rel=1e-9)
    assert len(each) == NUM_SUMS


def test_parts_follow_one_another_or_hide_each_other():
    sums = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    rates = {"floor_s": 5.0, "pair_s": 3.0, "entry_s": 4.0}
    assert kernels_s(np.array([Rates(**rates)]), sums[None])[0] == pytest.approx(12.0)
    assert kernels_s(np.array([Rates(**rates, overlap=2.0)]), sums[None])[0] == pytest.approx(10.0)
    assert kernels_s(np.array([Rates(**rates, overlap=200.0)]), sums[None])[0] == pytest.approx(
        9.0, rel=1e-2
    )
    assert work_s(np.array(Rates(floor_s=1.0, overlap=3.0)), sums) == 0.0
    assert work_s(np.array(Rates(floor_s=1.0, split_entries=0.5, split_s=7.0)), sums) == 7.0
