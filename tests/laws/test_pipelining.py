"""Schedules of a pipeline: every pass once, no stage waits for ever, and bubbles as published."""

import itertools
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.base.plugins import available, build
from simulator.engine.training import run_pipeline
from tests.cases import cases

FORWARD, INPUT, WEIGHT = 1.0, 1.25, 0.75
SECONDS = {"forward": FORWARD, "input": INPUT, "weight": WEIGHT, "backward": INPUT + WEIGHT}
"""Seconds of the passes through one stage's layers."""


def make(kind, **keys):
    return build("pipelining", {"kind": kind, **keys}, "test")


def run(policy, num_stages, num_micro_batches, send_s=0.0, seconds=SECONDS):
    assume(policy.find_refusal(num_stages, num_micro_batches) is None)
    places = policy.place_chunks(num_stages)
    chunks = len(places) // num_stages
    turns = [
        list(policy.list_turns(stage, num_stages, num_micro_batches)) for stage in range(num_stages)
    ]

    def turn_s(_, turn):
        return sum(seconds[one.kind] for one in turn) / chunks

    sends_s = dict.fromkeys(itertools.permutations(range(num_stages), 2), send_s)
    spans = run_pipeline(turns, places, turn_s, sends_s)
    return turns, spans, max(span.start_s + span.duration_s for span in spans)


@pytest.mark.parametrize("kind", available("pipelining"))
@cases(25)
@given(st.integers(1, 6), st.integers(1, 16), st.sampled_from([0.0, 0.1]))
def test_every_micro_batch_passes_every_chunk_once_each_way(
    kind, num_stages, num_micro_batches, send_s
):
    policy = make(kind)
    turns, spans, end_s = run(policy, num_stages, num_micro_batches, send_s)
    chunks = len(policy.place_chunks(num_stages)) // num_stages
    for own in turns:
        count = Counter((one.kind, one.micro_batch, one.chunk) for turn in own for one in turn)
        assert set(count.values()) == {1}
        for number in range(num_micro_batches):
            for chunk in range(chunks):
                assert count["forward", number, chunk] == 1
                whole = count["backward", number, chunk]
                assert whole + count["input", number, chunk] == 1
                assert count["input", number, chunk] == count["weight", number, chunk]
    assert len(spans) == sum(map(len, turns))
    busy_s = num_micro_batches * sum((FORWARD, INPUT, WEIGHT))
    for stage in range(num_stages):
        own = sorted(span for span in spans if span.stage == stage)
        own.sort(key=lambda span: span.start_s)
        assert sum(span.duration_s for span in own) == pytest.approx(busy_s)
        for before, after in itertools.pairwise(own):
            assert after.start_s >= before.start_s + before.duration_s - 1e-9
    assert end_s >= busy_s - 1e-9


@cases(25)
@given(st.integers(1, 8), st.integers(1, 20))
def test_one_forward_one_backward_and_gpipe_have_the_bubble_of_their_papers(p, m):
    for kind in ("gpipe", "one_f_one_b"):
        _, _, end_s = run(make(kind), p, m)
        assert end_s == pytest.approx((m + p - 1) * (FORWARD + INPUT + WEIGHT))


@cases(25)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
def test_interleaving_divides_the_bubble_by_its_chunks(p, groups, chunks):
    m, whole_s = groups * p, FORWARD + INPUT + WEIGHT
    _, _, end_s = run(make("interleaved", chunks=chunks), p, m)
    assert end_s == pytest.approx(m * whole_s + (p - 1) * whole_s / chunks)


@cases(25)
@given(st.integers(1, 6), st.integers(0, 12))
def test_weight_gradients_fill_gaps_as_zb_h1_says(p, more):
    m = 2 * p + more
    _, _, end_s = run(make("zero_bubble"), p, m)
    bubble_s = (p - 1) * (FORWARD + INPUT - WEIGHT)
    assert end_s == pytest.approx(m * (FORWARD + INPUT + WEIGHT) + bubble_s)


@cases(25)
@given(st.integers(1, 6), st.integers(0, 8))
def test_dualpipe_v_has_the_bubble_of_its_table(p, more):
    """Bubble ``(PP / 2 - 1)(F&B + B - 3 W)`` of ``PP = 2 p`` chunks, whose passes F, B and W are
    equally long, and F&B here one after the other.
    """
    m, chunk_s = 2 * p + more, 0.5
    seconds = {"forward": 1.0, "input": 1.0, "weight": 1.0, "backward": 2.0}
    _, _, end_s = run(make("dualpipe_v"), p, m, seconds=seconds)
    bubble_s = (p - 1) * (3 * chunk_s + 2 * chunk_s - 3 * chunk_s)
    assert end_s == pytest.approx(3.0 * m + bubble_s)


def test_what_a_schedule_refuses_would_run_as_it_says():
    assert "8 would do" in make("interleaved").find_refusal(4, 6)
    assert make("interleaved").find_refusal(4, 8) is None
    assert "(8)" in make("dualpipe_v").find_refusal(4, 7)
    assert make("dualpipe_v").find_refusal(4, 8) is None
