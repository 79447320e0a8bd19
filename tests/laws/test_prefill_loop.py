"""A prefill pool under a closed loop: what holds whatever its steps take."""

import numpy as np
import pytest

from simulator.lab.validation.serving.prefill_loop import Prompts, first_tokens


def prompts(num_ranks=1, most=1, step_s=0.5):
    """Steps that take as long however many ranks have prompts, and half as long again for each
    further prompt of a rank.
    """
    each = np.arange(1.0, most + 1)
    return Prompts(
        num_ranks,
        most,
        np.array([1.0, num_ranks])[: 1 + (num_ranks > 1)],
        each,
        step_s * (1 + (each - 1) / 2)[None].repeat(1 + (num_ranks > 1), 0),
    )


def served(given, workers=1, concurrency=1, rounds=8, decode_s=1.0):
    count = concurrency * rounds
    return first_tokens(given, workers, concurrency, count, np.full(count, decode_s))


def test_a_lone_request_takes_its_step():
    np.testing.assert_allclose(served(prompts()), 0.5)


def test_a_crowd_waits_in_line_at_one_rank():
    np.testing.assert_allclose(served(prompts(), concurrency=4, rounds=1), [0.5, 1.0, 1.5, 2.0])


def test_ranks_and_workers_share_a_crowd():
    np.testing.assert_allclose(
        served(prompts(num_ranks=2), concurrency=4, rounds=1), [0.5, 0.5, 1.0, 1.0]
    )
    np.testing.assert_allclose(
        served(prompts(), workers=2, concurrency=4, rounds=1), [0.5, 0.5, 1.0, 1.0]
    )


def test_a_worker_that_computes_is_not_taken_for_idle():
    """One of two workers has a request again at once, and the other is there for the next."""
    took = first_tokens(prompts(), 2, 2, 4, np.array([0.0, 0.3, 0.0, 0.0]))
    np.testing.assert_allclose(took, 0.5)


def test_prompts_that_share_a_step_end_together():
    np.testing.assert_allclose(served(prompts(most=4), concurrency=4, rounds=1), 0.5 * 2.5)


def test_a_step_of_a_number_between_two_that_were_priced_takes_as_long_as_its_place():
    given = Prompts(1, 3, np.array([1.0]), np.array([1.0, 3.0]), np.array([[0.5, 1.5]]))
    for number, step_s in ((1, 0.5), (2, 1.0), (3, 1.5)):
        np.testing.assert_allclose(served(given, concurrency=number, rounds=1), step_s)


def test_between_four_that_were_priced_a_step_takes_what_lies_between_them():
    """Of busy ranks and of prompts of each: seconds that are linear in both are met wherever."""

    def step_s(busy, each):
        return 0.5 + 0.25 * busy + 0.125 * each + 0.0625 * busy * each

    busy_B, each_N = np.array([1.0, 3.0, 4.0, 7.0]), np.array([1.0, 3.0, 4.0, 6.0])
    given = Prompts(7, 6, busy_B, each_N, step_s(busy_B[:, None], each_N))
    for number in range(1, 7 * 6 + 1):
        fullest = -(-number // 7)
        np.testing.assert_allclose(
            served(given, concurrency=number, rounds=1), step_s(number / fullest, fullest)
        )


def test_a_full_pool_is_as_fast_as_its_steps():
    """With nothing between requests, each waits for all others: as many steps as there are requests
    in flight (Little's law).
    """
    took = served(prompts(), concurrency=6, decode_s=0.0)
    np.testing.assert_allclose(took[6:], 6 * 0.5)


@pytest.mark.parametrize("concurrency", [3, 16, 40])
def test_more_workers_and_shorter_steps_never_take_longer(concurrency):
    few, many = (served(prompts(4, 2), workers, concurrency).mean() for workers in (1, 3))
    assert many <= few
    assert served(prompts(4, 2, step_s=0.25), 1, concurrency).mean() <= few


def test_a_pool_has_the_rate_of_its_best_step():
    assert prompts(4, 3).most_per_s() == pytest.approx(4 * 3 / (0.5 * 2))
