"""What is said of replicas that stopped and started."""

import pandas as pd
import pytest

from simulator.results.folder import TABLES, Results
from simulator.results.run_sentences import tell_changes, tell_room_wait


def change(at_s, *replicas, starts=False, pool="both", had=0):
    return {
        "at_s": at_s,
        "pool": pool,
        "starts": starts,
        "replicas": list(replicas),
        "num_requests": had,
    }


def tell(changes, **row):
    run = {"deployments": {"A": {"changes": changes}}}
    tables = dict.fromkeys(TABLES, pd.DataFrame()) | {"requests": {}, "steps": {}}
    row = pd.Series({"num_retries": 0, "num_lost": 0, "num_requests": 100} | row)
    return tell_changes(Results(run=run, summary=pd.DataFrame(), **tables), "A", row, "A")


@pytest.mark.parametrize(
    ("changes", "row", "said"),
    [
        ([], {}, None),
        (
            [change(30.0, 1, had=41), change(90.0, 1, starts=True)],
            {"num_retries": 41},
            "Of A, replica 1 stops at 30 s with 41 requests, replica 1 serves again from 90 s: "
            "41 times one is sent to another replica, and none is lost.",
        ),
        (
            [change(5.0, 0, 1, had=1)],
            {"num_retries": 1},
            "Of A, 2 replicas stop at 5 s with 1 request: once a request is sent to another "
            "replica, and none is lost.",
        ),
        (
            [change(5.0, 2, pool="prefill")],
            {},
            "Of A, prefill replica 2 stops at 5 s without work: no request is sent to another "
            "replica, and none is lost.",
        ),
        (
            [change(5.0, 0), change(6.0, 0, 1, starts=True)],
            {"num_lost": 1},
            "Of A, replica 0 stops at 5 s without work, 2 replicas serve again from 6 s: no request "
            "is sent to another replica, and 1 of 101 requests is lost, since no replica is there "
            "then.",
        ),
        (
            [change(float(n), 0, starts=n % 2 == 0) for n in range(1, 5)],
            {"num_lost": 20},
            "Of A, replica 0 stops at 1 s without work, replica 0 serves again from 2 s, replica 0 "
            "stops at 3 s without work, another change follows at 4 s: no request is sent to "
            "another replica, and 20 of 120 requests are lost, since no replica is there then.",
        ),
    ],
)
def test_changes_are_told_one_by_one_while_they_are_few(changes, row, said):
    assert tell(changes, **row) == said


def test_many_changes_are_counted():
    changes = [change(float(n), 0, starts=n % 2 == 0) for n in range(1, 9)]
    assert ", 5 more changes follow until 8 s: " in tell(changes)


@pytest.mark.parametrize(
    ("wait_s", "said"),
    [
        (0.0, None),
        (float("nan"), None),
        (0.2, None),
        (
            1.5,
            "Prompts of A wait 1.5 s on average for room in its decode pool, 60 % of their time to "
            "first token: more decode replicas, or more room in theirs, would help.",
        ),
    ],
)
def test_prompts_that_wait_for_room_are_told(wait_s, said):
    row = pd.Series({"room_wait_mean_s": wait_s, "ttft_mean_s": 2.5})
    assert tell_room_wait(row, "A") == said
