"""A GPU or a node that is lost: what files may say of it, and what a run says of what follows."""

import json

import pytest

from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.commands.run import run as run_scenario
from simulator.policies.failures import Change, Machines
from tests.small_scenario import small_scenario

POOLS = {"decode": Machines(2, 4, 8, "a"), "prefill": Machines(3, 2, 4, "b")}
SHARED = {"decode": Machines(3, 4, 8, "a"), "prefill": Machines(3, 2, 8, "a", 12)}


def changes(machines, **keys):
    return list(build("failures", {"kind": "kill", **keys}, "test").changes(machines, None))


def gpus(first, end):
    return tuple(range(first, end))


def test_a_gpu_takes_its_replica_and_a_node_all_that_are_on_it():
    both = {"both": Machines(6, 4, 8)}
    assert changes(both, at_s=2.0, gpu=9) == [Change(2.0, "both", (2,), False, (9,))]
    assert changes(both, at_s=2.0, node=1) == [Change(2.0, "both", (2, 3), False, gpus(8, 16))]
    assert changes(POOLS, at_s=0.0, node=0, restart_s=5.0) == [
        Change(0.0, "decode", (0, 1), False, gpus(0, 8)),
        Change(5.0, "decode", (0, 1), True, gpus(0, 8)),
    ]
    assert changes(POOLS, at_s=0.0, node=1, pool="prefill") == [
        Change(0.0, "prefill", (2,), False, (4, 5))
    ]


def test_a_node_that_two_pools_share_takes_both_and_nothing_else():
    """12 GPUs of the deployment's own, then 6 of the prefill pool's, 8 on a node."""
    assert changes(SHARED, at_s=1.0, node=1) == [
        Change(1.0, "decode", (2,), False, gpus(8, 12)),
        Change(1.0, "prefill", (0, 1), False, gpus(0, 4)),
    ]
    alone = changes(SHARED, at_s=1.0, node=2, pool="prefill")
    assert alone == [Change(1.0, "prefill", (2,), False, (4, 5))]
    under_one_switch = changes(SHARED, at_s=1.0, node=1, num_nodes=2)
    hit = {change.pool: change.gpus for change in under_one_switch}
    assert hit == {"decode": gpus(8, 12), "prefill": gpus(0, 6)}
    with pytest.raises(UserError, match="node = 3: there are 3, numbered from 0"):
        changes(SHARED, at_s=1.0, node=3)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("at_s = 1.0", "names either a gpu or a node"),
        ("at_s = 1.0, gpu = 0, num_nodes = 2", "num_nodes counts nodes from node on"),
        ("at_s = 1.0, node = 0, num_nodes = 99", "num_nodes - 1 = 98: there "),
        ("at_s = 1.0, gpu = 8", "gpu = 8: there are 8, numbered from 0"),
        ("at_s = 1.0, node = 1", "node = 1: there are 1, numbered from 0"),
        ('at_s = 1.0, gpu = 0, pool = "prefill"', "there is no prefill pool; leave it out"),
    ],
)
def test_what_is_not_there_is_refused_with_its_place(tmp_path, keys, said):
    more = f'failures = [{{ kind = "kill", {keys} }}]'
    with pytest.raises(UserError) as refused:
        run(tmp_path, more)
    assert said in str(refused.value)
    assert "[failures.0]" in str(refused.value)


def run(tmp_path, more, ranks=4):
    path = tmp_path / "scenario.toml"
    path.write_text(small_scenario("stdlib-moe", ranks, more=more))
    return run_scenario(path)


def test_a_run_says_what_stopped_and_what_became_of_the_requests(tmp_path):
    whole = run(tmp_path, "").requests["own"]
    served = whole[whole["replica"] == 1].iloc[0]
    at_s = float(served["first_token_s"] + served["finish_s"]) / 2
    loss = f'failures = [{{ kind = "kill", at_s = {at_s}, gpu = 5, restart_s = 0.01 }}]'
    results = run(tmp_path, loss)
    facts = results.run["deployments"]["own"]
    stops, starts = facts["changes"]
    assert (stops["at_s"], stops["starts"], stops["replicas"]) == (at_s, False, [1])
    assert (starts["at_s"], starts["starts"], starts["replicas"]) == (at_s + 0.01, True, [1])
    row = results.summary.iloc[0]
    assert stops["num_requests"] > 0
    assert row["num_requests"] == 5
    assert row["num_retries"] == stops["num_requests"] == len(results.moves)
    assert "kill" in facts["failures"]
    assert row["availability"] == pytest.approx(1 - 0.01 / 2 / row["duration_s"])
    json.dumps(results.run, allow_nan=False)


def test_a_run_in_which_nothing_finishes_says_so(tmp_path):
    with pytest.raises(UserError, match="no step was taken: its replicas stop before any request"):
        run(tmp_path, 'failures = [{ kind = "kill", at_s = 0.0, node = 0 }]')
    first_s = float(run(tmp_path, "").requests["own"]["scheduled_s"].min()) + 1e-4
    with pytest.raises(UserError, match="no request finished: failures stop its replicas before"):
        run(tmp_path, f'failures = [{{ kind = "kill", at_s = {first_s}, node = 0 }}]')


def test_who_loses_requests_is_not_better_whatever_the_latencies(tmp_path):
    path = tmp_path / "two.toml"
    text = small_scenario("stdlib-moe", 8)
    whole = text[text.index("[[deployments]]") :]
    dies = whole.replace('"own"', '"dies"') + 'failures = [{ kind = "kill", at_s = 0.12, gpu = 0 }]'
    path.write_text(text.replace('"own"', '"stays"') + dies)
    results = run_scenario(path)
    assert results.run["verdict"]["winner"] == "stays"
    rows = results.summary.set_index("deployment")
    assert rows["num_lost"]["dies"] > 0
    assert rows["duration_s"]["dies"] >= float(results.requests["dies"]["arrival_s"].max())
    assert rows["ttft_p50_s"]["dies"] > 0
