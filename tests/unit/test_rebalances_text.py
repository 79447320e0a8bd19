"""The finding on experts that moved."""

import pytest

from simulator.results.run_sentences import find_rebalances

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


def find(*moves):
    return [*find_rebalances({"rebalances": list(moves)}, "A")]


def test_nothing_is_said_where_experts_stay():
    assert not find()


@pytest.mark.parametrize(
    ("moves", "facts"),
    [
        ([MOVED | {"num_parts": 12}], {"parts": 12, "gains": True}),
        (
            [MOVED, MOVED | {"num_experts": 800, "imbalance_next": 1.7}],
            {"moves": 2, "copies": 1000, "stopped_s": 0.063, "gains": False},
        ),
        ([MOVED | {"imbalance_next": None}], {"next_imbalance": None}),
        ([MOVED | {"stops": False}], {"stopped_s": 0}),
        ([MOVED | {"predicted_s": 0.02}, MOVED | {"predicted_s": 0.04}], {"predicted_s": 0.03}),
        ([MOVED, MOVED | {"predicted_s": 0.04}], {"predicted_s": None}),
    ],
)
def test_moves_are_averaged_and_judged(moves, facts):
    (found,) = find(*moves)
    assert str(found).startswith("Experts of A move ")
    assert {key: found.facts[key] for key in facts} == pytest.approx(facts)
