"""What is found of replicas that stopped and started."""

import pandas as pd
import pytest

from simulator.results.folder import TABLES, Results
from simulator.results.run_sentences import find_changes, find_room_wait


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


def test_changes_are_told_one_by_one_while_they_are_few():
    assert not find([])
    (found,) = find(
        [change(float(n), 0, starts=n % 2 == 0) for n in range(1, 5)], num_lost=1, num_retries=1
    )
    assert "1 of 101 requests is lost" in str(found)
    assert (found.facts["more"], found.facts["last_s"]) == (1, 4.0)
    (found,) = find([change(float(n), 0, starts=n % 2 == 0) for n in range(1, 9)])
    assert (found.facts["more"], found.facts["last_s"]) == (5, 8.0)


@pytest.mark.parametrize(
    ("wait_s", "shares"), [(0.0, []), (float("nan"), []), (0.2, []), (1.5, [0.6])]
)
def test_prompts_that_wait_for_room_are_told(wait_s, shares):
    row = pd.Series({"room_wait_mean_s": wait_s, "ttft_mean_s": 2.5})
    assert [one.facts["share"] for one in find_room_wait(row, "A")] == shares
