"""The words about a mixture of experts beside its dense twins follow the losses."""

import pytest

pytest.importorskip("torch", reason="recording needs PyTorch")

from simulator.runtime.recording.comparison import Above, Outcome, findings, headline
from simulator.runtime.recording.models import MOE, SAME_ACTIVE, SAME_TOTAL


def outcome(model, seconds, same_tokens, same_time, reached=None):
    """Losses beside a mixture that ends at 2.0; differences have a standard error of 0.01."""
    above = (Above(same_tokens - 2.0, 0.01), Above(same_time - 2.0, 0.01))
    return Outcome(
        model, 4, 2, 1000, seconds, 1.9, same_tokens, above[0], 500, same_time, above[1], reached
    )


def test_the_headline_and_findings_follow_the_numbers():
    moe = outcome(MOE, 10.0, 2.0, 2.0, 10.0)
    total = outcome(SAME_TOTAL, 30.0, 1.9, 2.5, 25.0)
    rows = [moe, total, outcome(SAME_ACTIVE, 8.0, 2.1, 2.05)]
    assert headline(rows) == (
        "After 10 s of its own compute the mixture of experts reached a held-out loss of 2.00 "
        "nats a byte; in the same time the dense model of the same total size reached 2.50 and "
        "the one of the same active size 2.05: the mixture of experts learned fastest."
    )
    said = findings(rows)
    assert (
        said[0] == "The dense model of the same total size needed 25 s to reach the mixture's loss."
    )
    assert said[1].startswith(
        "The dense model of the same active size did not reach the mixture's loss in any run"
    )
    assert (
        "same total size 0.100 ± 0.010 below it and the dense model of the same active size 0.100 ± 0.010 above it"
        in said[2]
    )
    assert "3.00 times as long for the dense model of the same total size and 0.80 times" in said[3]
    assert headline([moe, total, outcome(SAME_ACTIVE, 8.0, 2.1, 1.9)]).endswith(
        "the dense model of the same active size learned fastest."
    )
    for level in (1.99, 2.01):
        assert "no clear difference" in headline(
            [moe, total, outcome(SAME_ACTIVE, 8.0, 2.01, level)]
        )
    assert (
        "level with it (0.010 ± 0.010 apart)"
        in findings([moe, total, outcome(SAME_ACTIVE, 8.0, 2.01, 2.0)])[2]
    )
