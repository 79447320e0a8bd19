"""How expert choices are drawn and taken, against the same by loops."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.plugins import build
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.policies.placement import Placed
from simulator.step.expert_choices import ChoosingTokens
from simulator.work.layout import Layout
from simulator.work.slots import SlotMap
from tests.cases import cases


@cases(40)
@given(
    st.integers(0, POOL_TOKENS - 1),
    st.integers(1, 2 * POOL_TOKENS),
    st.integers(0, 1000),
    st.sampled_from([1, 2, 3, 8]),
)
def test_a_steps_tokens_are_the_pools_from_one_place_on_and_go_round_it(offset, total, seed, run):
    """Steps of more tokens than the pool has take a whole round, from the start of a run on."""
    ids_LTK = np.random.default_rng(seed).integers(8, size=(2, POOL_TOKENS, 2)).astype(np.int16)
    experts = SimpleNamespace(
        topk_ids_LTK=ids_LTK,
        next_LTN=None,
        overflow=build("overflow", {"kind": "none"}, "test"),
        run_tokens=run,
    )
    tokens = ChoosingTokens(experts, Layout(tp=1, attention_dp=1, ep=1), np.array([total]))
    slots = SlotMap(Placed(np.arange(8)[None], np.zeros((1, 8), dtype=np.int64), 1), 0, 8)
    chosen = tokens.choose(slots, 1, offset)
    count = min(total, POOL_TOKENS)
    places = [(offset // run * run + place) % POOL_TOKENS for place in range(count)]
    assert np.array_equal(chosen.slot_TK, ids_LTK[1, places])
    assert chosen.scale == total / count
