"""`moesim execute` and `moesim trace record runtime` as a user runs them: real actors, a results
folder, Ctrl-C, wrong input.
"""

import json
import os
import signal
import statistics
import time
from pathlib import Path

import numpy as np
import pytest

from simulator.calibration.host import measure
from simulator.policies.dispatch import per_rank
from simulator.results.executed import SUMMARY_COLUMNS, Executed
from simulator.results.phases import STEP_PHASES
from tests.runtime.model_files import write_models
from tests.runtime.processes import PATIENCE_S, descendants, left_of, start_moesim

pytestmark = pytest.mark.xdist_group("ray-apart")

SCENARIO = """
name = "tiny"
seed = 3
[workload]
requests = { arrivals = { kind = "poisson", rate_per_s = 2.0 }, lengths = { kind = "fixed", num_input = 8, num_output = 4 }, num_requests = 4 }
[execution]
prompts = 3
prompt_tokens = 5
sequences = 5
context_tokens = 7
steps = 3
warm_up = 1
timeout_s = 10.0
[[deployments]]
name = "moe"
model = "moe.toml"
cluster = "this-machine-2"
parallel = { attention_dp = 2, ep = 2 }
[[deployments]]
name = "pruned"
model = "dense.toml"
cluster = "this-machine-2"
parallel = { tp = 2 }
pruning = { kind = "unstructured", sparsity = 0.5 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("execute")
    (here / "tiny.toml").write_text(SCENARIO)
    write_models(here)
    return here


@pytest.fixture(scope="module")
def executed(folder):
    faults = "execution.faults=[{ step = 2, rank = 1 }]"
    process = start_moesim(
        folder,
        "execute",
        "tiny.toml",
        "--out",
        "out",
        "--json",
        "--simulated-nodes",
        "2",
        "--set",
        faults,
        "--set",
        "deployments.0.rebalancing={ kind = 'incremental', every_s = 0.001, tolerance = 1.0 }",
    )
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return json.loads(out), Executed.read(folder / "out")


DISPATCH = Path(per_rank.__file__).read_text(encoding="utf-8")


def test_shards_run_a_policy_of_the_current_folder_where_that_is_allowed(
    folder, moesim, monkeypatch
):
    (folder / "my_package").mkdir()
    (folder / "my_package" / "my_dispatch.py").write_text(DISPATCH)
    (folder / "torch.py").write_text("raise SystemExit('a stray file ran')")
    kind = "deployments.0.dispatch.kind=my_package.my_dispatch"
    command = ("execute", "tiny.toml", "--out", "own", "--set", kind, "--set", "execution.steps=1")
    command += ("--deployment", "moe")
    process = start_moesim(folder, *command, "--allow-code")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert Executed.read(folder / "own").deployments == ["moe"]
    (folder / "torch.py").unlink()
    monkeypatch.chdir(folder)
    code, _, err = moesim(*command)
    assert code == 2
    assert "--allow-code" in err


def test_standard_output_is_the_result_and_nothing_else(executed):
    said, found = executed
    assert [row["deployment"] for row in said["summary"]] == ["moe", "moe", "pruned", "pruned"]
    assert set(said["summary"][0]) == set(SUMMARY_COLUMNS)
    assert found.deployments == ["moe", "pruned"]


def test_every_step_is_measured_and_predicted_and_its_phases_add_up(executed):
    _, found = executed
    counts = found.steps.groupby(["deployment", "kind", "source"]).size()
    assert (counts == 3).all()
    assert len(counts) == 8
    phases = found.steps[[f"{phase}_s" for phase in STEP_PHASES]].sum(axis=1)
    assert phases.to_numpy() == pytest.approx(found.steps["duration_s"].to_numpy(), rel=1e-6)
    tokens = found.steps.groupby("kind")["tokens"].unique()
    assert tokens["prompt"].tolist() == [15]
    assert tokens["decode"].tolist() == [5]


def test_the_timeline_is_of_the_step_at_the_median_of_its_kind(executed):
    _, found = executed
    for name in found.deployments:
        for kind, shown in found.run["deployments"][name]["shown_steps"].items():
            own = found.steps[(found.steps["deployment"] == name) & (found.steps["kind"] == kind)]
            measured = own[own["source"] == "measured"].set_index("number")["duration_s"]
            assert measured[shown["number"]] == statistics.median_low(measured)
            predicted = own[own["source"] == "predicted"].set_index("number")["duration_s"]
            spans = found.spans[
                (found.spans["deployment"] == name) & (found.spans["phase"] == f"{kind}, predicted")
            ]
            by_rank_s = spans.groupby("rank")["duration_s"].sum()
            assert by_rank_s.to_numpy() == pytest.approx(predicted[shown["number"]], abs=1e-9)
            assert (shown["uniform_imbalance"] is None) == (name == "pruned")


def test_the_distributed_run_equals_the_whole_model(executed):
    _, found = executed
    assert (found.summary["largest_difference"] < 1e-4).all()


def test_no_pair_is_lost_or_counted_twice(executed):
    _, found = executed
    pairs = found.ranks.groupby(["kind", "number", "layer"])["num_pairs"].sum()
    assert set(pairs["prompt"]) == {15 * 2}
    assert set(pairs["decode"]) == {5 * 2}


def test_how_much_others_took_of_the_cores_is_told(executed):
    _, found = executed
    assert found.summary["others_share"].between(0, 1).all()
    assert (found.summary["idle_error"] >= found.summary["error"]).all()


def test_only_the_deployment_that_was_named_is_run_and_its_verdict_is_on_the_terminal(
    folder, moesim, monkeypatch
):
    monkeypatch.chdir(folder)
    named = ("--out", "one", "--deployment", "pruned", "--backend", "in_process")
    code, out, err = moesim("execute", "tiny.toml", *named)
    assert code == 0, err
    assert Executed.read(folder / "one").deployments == ["pruned"]
    assert Executed.read(folder / "one").verdict["headline"] in out


def test_a_machine_that_is_slower_than_when_it_was_calibrated_is_told_and_predicted_as_such(
    folder, moesim, monkeypatch
):
    monkeypatch.chdir(folder)
    predicted_s, notes = [], []
    for number, pace in enumerate((1.0, 1.5)):
        monkeypatch.setattr(measure, "measure_pace", lambda *_, pace=pace: pace)
        command = ("--out", f"pace-{number}", "--deployment", "moe", "--backend", "in_process")
        code, _, err = moesim("execute", "tiny.toml", *command)
        assert code == 0, err
        found = Executed.read(folder / f"pace-{number}")
        assert found.run["deployments"]["moe"]["pace"] == pace
        predicted_s.append(found.summary["predicted_step_s"].to_numpy())
        notes.append(" ".join(err.split()))
    assert predicted_s[1] == pytest.approx(1.5 * predicted_s[0])
    assert "took 1.50 times as long as when the calibration was made" in notes[1]
    assert "when the calibration was made" not in notes[0]


def test_experts_that_moved_between_steps_are_in_the_record_beside_their_price(executed):
    said, found = executed
    moves = found.run["deployments"]["moe"]["rebalances"]
    assert moves == said["deployments"]["moe"]["rebalances"]
    assert moves
    assert found.run["deployments"]["pruned"]["rebalances"] == []
    slot_bytes = 4 * 3 * 32 * 16
    for moved in moves:
        assert moved["num_bytes"] == moved["num_experts"] * slot_bytes > 0
        assert moved["seconds"] > 0
        assert moved["predicted_s"] > 0
        assert moved["imbalance_after"] < moved["imbalance_before"]


def test_what_was_killed_is_in_the_record(executed):
    said, found = executed
    assert found.faults["what"].tolist() == ["rank 1 died"] * 2
    assert found.faults["deployment"].tolist() == ["moe", "pruned"]
    assert (found.faults["recovery_s"] > 0).all()
    assert len(said["faults"]) == 2


def test_a_recovery_is_no_part_of_the_step_that_is_compared(executed):
    _, found = executed
    measured = found.steps[found.steps["source"] == "measured"]
    for fault in found.faults.itertuples():
        own = measured[measured["deployment"] == fault.deployment]
        broken = own.loc[own["number"] == fault.step, "duration_s"]
        assert len(broken) == 1  # a step that counts
        assert broken.item() < fault.recovery_s


def test_the_folder_holds_the_report_and_the_timeline(executed, folder):
    out = folder / "out"
    assert "moe" in (out / "report.html").read_text()
    events = json.loads((out / "timeline.json").read_text())["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X"} >= {
        "attention",
        "experts",
        "dispatch",
        "combine",
    }
    run = json.loads((out / "run.json").read_text())
    assert run["nodes"] == "2 simulated nodes"
    assert set(run["versions"]) >= {"torch", "ray"}


def test_ctrl_c_writes_nothing_and_leaves_no_process_though_a_rank_is_being_started(folder):
    process = start_moesim(
        folder,
        *("execute", "tiny.toml", "--out", "never", "--set", "execution.steps=100000"),
        *("--set", "deployments.0.placement={ kind = 'eplb', num_slots = 16 }"),
        *("--set", "deployments.0.recovery={ kind = 'elastic' }"),
        "--set",
        "deployments.0.failures=[{ kind = 'kill', at_s = 0.0, gpu = 1, restart_s = 0.0 }]",
    )
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and len(descendants(process.pid)) < 6:
        time.sleep(0.5)
    time.sleep(2)
    started = descendants(process.pid)
    assert started
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert "stopped; nothing was written" in err
    assert not (folder / "never").exists()
    assert left_of(started) == set()


LOSES = (
    "--set",
    "deployments.0.failures=[{ kind = 'kill', at_s = 0.0, gpu = 0 }]",
    "--set",
    "deployments.0.recovery={ kind = 'elastic' }",
)


def test_a_rank_lost_as_failures_have_it_is_in_the_record_and_no_process_is_left(folder):
    command = ("execute", "tiny.toml", "--deployment", "moe", "--out", "lost", "--json", *LOSES)
    slots = ("--set", "deployments.0.placement={ kind = 'eplb', num_slots = 16 }")
    process = start_moesim(folder, *command, *slots)
    until_s, started = time.monotonic() + PATIENCE_S, set()
    while process.poll() is None and time.monotonic() < until_s:
        started |= descendants(process.pid)
        time.sleep(0.2)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    said, found = json.loads(out), Executed.read(folder / "lost")
    changes = found.run["deployments"]["moe"]["changes"]
    assert changes == said["deployments"]["moe"]["changes"]
    assert [change["kind"] for change in changes] == ["hangs", "shrinks"]
    assert {change["step"] for change in changes} == {1}  # the first that is measured
    assert [change["ranks"] for change in changes] == [[0], [0]]
    assert set(found.ranks["rank"]) == {1}
    assert (found.summary["largest_difference"] < 1e-4).all()
    assert found.faults.empty
    assert started
    assert left_of(started) == set()


def test_a_rank_that_cannot_be_done_without_ends_the_command_with_what_would_do(
    folder, moesim, monkeypatch
):
    monkeypatch.chdir(folder)
    command = ("execute", "tiny.toml", "--deployment", "moe", "--out", "never", *LOSES)
    code, _, err = moesim(*command, "--backend", "in_process")
    assert code == 2, err
    assert "rank 0 failed and never works again, and the one that is left has too few slots" in err
    assert "num_slots = 16" in err
    assert not (folder / "never").exists()


def test_a_lost_cluster_is_said_in_one_line_and_leaves_nothing(folder):
    process = start_moesim(
        folder, "execute", "tiny.toml", "--out", "never", "--set", "execution.steps=100000"
    )
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and not any(
        "Shard" in args for _, args in descendants(process.pid)
    ):
        time.sleep(0.5)
    time.sleep(2)
    started = descendants(process.pid)
    (head,) = (pid for pid, args in started if "gcs_server" in args)
    os.kill(head, signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, err
    (said,) = (line for line in err.splitlines() if line.startswith("error:"))
    assert "Ray was lost while 'moe' ran: its head at" in said
    assert said.endswith("nothing was written; run the same command again")
    assert "Traceback" not in err
    assert not (folder / "never").exists()
    assert left_of(started) == set()


def test_running_shards_are_recorded_in_a_file_that_replays(folder, moesim, monkeypatch):
    process = start_moesim(
        folder, "trace", "record", "runtime", "tiny.toml", "ids.npz", "--tokens", "40", "--json"
    )
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    said = json.loads(out)
    with np.load(folder / "ids.npz") as arrays:
        assert arrays["ids"].shape == (2, 45, 2)
        assert arrays["seq_lens"].tolist() == [5] * 9
        assert arrays["ids"].max() < 8
        assert len(set(arrays["domain"].tolist())) == 3
    assert said["experts"] == 8
    replay = "deployments.0.routing={ kind = 'replay', trace = 'ids.npz' }"
    monkeypatch.chdir(folder)
    code, _, err = moesim("check", "tiny.toml", "--set", replay)
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--deployment", "prune"], "--deployment prune: tiny.toml has none of that name; did you"),
        (["--set", "execution.faults=[{ step = 1, rank = 7 }]"], "rank 7: 'moe' has ranks 0 to 1"),
        (
            ["--set", "execution.faults=[{ step = 1, node = 0 }]"],
            "start it with --simulated-nodes 1 or more",
        ),
        (["--set", "execution.faults=[{ step = 99, rank = 0 }]"], "step 99: the last one is 7"),
        (["--set", "execution.faults=[{ step = 1 }]"], "a fault kills either a rank or a node"),
        (
            ["--set", "execution.prompts=0", "--set", "execution.sequences=0"],
            "there is nothing to execute",
        ),
        (["--set", "execution.transport.kind=pigeon"], "unknown runtime.transport kind 'pigeon'"),
        (["--set", "execution.transport.kind=in_process"], "joins threads of one process"),
        (
            ["--set", "deployments.0.weight_dtype=fp8"],
            'weight_dtype = "fp8" was not timed on',
        ),
        (["--set", "deployments.0.weights=none.safetensors"], "no such file"),
        (["--set", "deployments.0.cluster=this-machine-4"], "has 2 replicas; execution runs one"),
        (["--simulated-nodes", "2", "--address", "x:1"], "give one of them"),
        (["--simulated-nodes", "0"], "should be greater than or equal to 1"),
    ],
)
def test_wrong_input_is_one_line_before_anything_starts(
    folder, moesim, monkeypatch, arguments, said
):
    monkeypatch.chdir(folder)
    before = descendants(os.getpid())
    code, _, err = moesim("execute", "tiny.toml", "--out", "wrong", *arguments)
    assert code == 2, err
    assert said in err
    assert descendants(os.getpid()) <= before
    assert "Traceback" not in err
    assert not (folder / "wrong").exists()
