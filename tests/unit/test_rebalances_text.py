"""The sentence on experts that moved."""

import pytest

from simulator.results.run_sentences import tell_rebalances

MOVED = {
    "at_s": 30.0,
    "pool": "both",
    "num_experts": 1200,
    "num_bytes": 4.2e9,
    "seconds": 0.0315,
    "stops": True,
    "imbalance_before": 1.5,
    "imbalance_after": 1.02,
    "imbalance_next": 1.1,
    "imbalance_unmoved": 1.4,
}


def tell(*moves):
    return tell_rebalances({"rebalances": list(moves)}, "A")


def test_nothing_is_said_where_experts_stay():
    assert tell() is None


def test_steps_between_the_parts_of_a_move_are_told():
    told = tell(MOVED | {"num_parts": 12})
    assert "in 31.5 ms, in which a replica forms no step but between its 12 parts. Until" in told


def test_one_move_is_told_with_what_came_of_it():
    assert tell(MOVED) == (
        "Experts of A move once: 1,200 copies (4.2 GB in each replica) in 31.5 ms, in which a "
        "replica forms no step. Until it is looked at again the busiest rank has 1.10 times the "
        "mean rank's load, and would have 1.40 times had they stayed."
    )


def test_moves_that_change_nothing_are_said_to_gain_nothing():
    text = tell(MOVED, {**MOVED, "num_experts": 800, "imbalance_next": 1.7})
    assert (
        "move 2 times: 1,000 copies (4.2 GB in each replica, on average) in 31.5 ms, in which a "
        "replica forms no step, 63 ms in all."
    ) in text
    assert text.endswith("and would have 1.40 times had they stayed: moving gains nothing.")


@pytest.mark.parametrize("key", ["imbalance_next"])
def test_a_move_at_the_end_of_a_run_is_not_judged(key):
    assert tell({**MOVED, key: None}).endswith("in which a replica forms no step.")


def test_moves_beside_steps_are_told_as_such():
    assert "in 31.5 ms, in the background of steps. Until" in tell({**MOVED, "stops": False})


def test_a_move_that_was_made_for_real_has_its_prediction_beside_it():
    told = tell(MOVED | {"predicted_s": 0.02}, MOVED | {"predicted_s": 0.04})
    assert "on average) in 31.5 ms (predicted: 30 ms), in which" in told
