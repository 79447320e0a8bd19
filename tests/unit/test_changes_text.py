"""What is found of replicas that stopped and started."""

import pandas as pd
import pytest

from simulator.results.folder import TABLES, Results
from simulator.results.run_sentences import describe_change, find_changes, find_room_wait
from simulator.results.tables import ReplicasChanged


def change(at_s, *replicas, starts=False, pool="both", had=0, **more):
    return {
        "at_s": at_s,
        "pool": pool,
        "kind": "starts" if starts else "stops",
        "starts": starts,
        "replicas": list(replicas),
        "num_requests": had,
        "num_gpus": 8,
        "serves_s": at_s,
        **more,
    }


def find(changes, **row):
    run = {"deployments": {"A": {"changes": changes}}}
    tables = dict.fromkeys(TABLES, pd.DataFrame()) | {"requests": {}, "steps": {}}
    row = pd.Series({"num_retries": 0, "num_lost": 0, "num_requests": 100} | row)
    return [*find_changes(Results(run=run, summary=pd.DataFrame(), **tables), "A", row, "A")]


STOPS = [change(30.0, 1, had=41), change(90.0, 1, starts=True)]
MANY = [change(float(n), 0, starts=n % 2 == 0) for n in range(1, 9)]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (change(30.0, 1, had=41), "replica 1 stops at 30 s with 41 requests"),
        (change(5.0, 0, 1, had=1), "2 replicas stop at 5 s with 1 request"),
        (change(5.0, 2, pool="prefill"), "prefill replica 2 stops at 5 s without work"),
        (change(6.0, 0, 1, starts=True), "2 replicas serve again from 6 s"),
        (
            change(6.0, 0, kind="shrinks", num_gpus=7, serves_s=9.0, had=2),
            "replica 0 goes on with 7 GPUs from 9 s without 2 requests",
        ),
    ],
)
def test_a_change_is_told_in_few_words(told, said):
    assert str(describe_change(ReplicasChanged(**told))) == said


def test_changes_are_told_one_by_one_while_they_are_few():
    assert not find([])
    (found,) = find(
        [change(float(n), 0, starts=n % 2 == 0) for n in range(1, 5)], num_lost=1, num_retries=1
    )
    assert str(found) == (
        "Of A, replica 0 stops at 1 s without work, replica 0 serves again from 2 s, replica 0 "
        "stops at 3 s without work, another change follows at 4 s: once a request is sent to "
        "another replica, and 1 of 101 requests is lost, since no replica is there then."
    )
    (found,) = find([change(float(n), 0, starts=n % 2 == 0) for n in range(1, 9)])
    assert (found.facts["more"], found.facts["last_s"]) == (5, 8.0)


@pytest.mark.parametrize(
    ("wait_s", "shares"), [(0.0, []), (float("nan"), []), (0.2, []), (1.5, [0.6])]
)
def test_prompts_that_wait_for_room_are_told(wait_s, shares):
    row = pd.Series({"room_wait_mean_s": wait_s, "ttft_mean_s": 2.5})
    assert [one.facts["share"] for one in find_room_wait(row, "A")] == shares
