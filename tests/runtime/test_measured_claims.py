"""Claims that are measured on this machine: models that are trained, shards that run, and products
with pruned matrices; kept, read back, and shown beside the verdict.
"""

import json
from functools import partial

import pytest

from simulator.base.errors import UserError
from simulator.calibration.host import sparsity
from simulator.cli.console import StoppedError
from simulator.commands import record_training
from simulator.config.claim import load_claim
from simulator.lab.cli import claims as cli
from simulator.lab.commands import claims
from simulator.lab.commands.claims import ClaimMeasurements, read_measured, try_claims
from simulator.lab.report.claims_page import render
from simulator.lab.results.claims import ClaimsResults
from tests.runtime.model_files import write_models
from tests.runtime.small_training import RECIPE, SHAPE

COUNTED = """
title = "Sparsity saves something."
asks = "Does it?"
[trial]
kind = "sparsity"
models = ["olmoe-1b-7b"]
batches = [1]
sparsities = [0.5]
"""
REAL = {
    "trained": 'kind = "training"\nminutes = 0.02\nseeds = 2',
    "pruned": 'kind = "sparsity"\ntokens = [1]',
    "run": (
        'kind = "execution"\nscenario = "tiny.toml"\nmixture = "moe"\n'
        'rivals = ["dense"]\nbackend = "in_process"'
    ),
}
SCENARIO = """
name = "tiny"
[workload]
requests = { arrivals = { kind = "poisson", rate_per_s = 2.0 }, lengths = { kind = "fixed", num_input = 8, num_output = 4 }, num_requests = 4 }
[execution]
prompts = 2
prompt_tokens = 5
sequences = 2
context_tokens = 7
steps = 4
warm_up = 1
[[deployments]]
name = "moe"
model = "moe.toml"
cluster = "this-machine-1"
offload = { tier = "storage", slots = 3 }
[[deployments]]
name = "dense"
model = "dense.toml"
cluster = "this-machine-1"
[[deployments]]
name = "pruned"
model = "dense.toml"
cluster = "this-machine-1"
pruning = { kind = "unstructured", sparsity = 0.5 }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, text):
    """Claims, models and a scenario, and nobody's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sparsity, "_PASSES", 1)
    monkeypatch.setattr(sparsity, "_TIMED_S", 0.0)
    small = partial(record_training.train_and_record, shape=SHAPE, recipe=RECIPE)
    monkeypatch.setattr(
        record_training, "train_and_record", lambda _, *rest: small(text, *rest[:2], 400, *rest[3:])
    )
    for name, table in REAL.items():
        (tmp_path / f"{name}.toml").write_text(f"{COUNTED}\n[real]\n{table}\n")
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    write_models(tmp_path)
    return tmp_path


def test_claims_are_measured_once_and_stand_beside_their_verdicts(folder):
    names = [f"{name}.toml" for name in REAL]
    before = try_claims(names, num_seeds=1)
    assert all(answer.measured is None for answer in before.answers)
    wanted = ClaimMeasurements(names)
    assert wanted.describe().startswith("measuring on this machine takes about ")
    told = []
    wanted.measure(lambda *words: told.append(words[0]))
    assert {words.partition(",")[0] for words in told} == set(REAL)
    results = try_claims(names, num_seeds=1)
    for answer, earlier in zip(results.answers, before.answers, strict=True):
        assert answer.measured.cases
        assert answer.measured.sentences
        assert answer.verdict == earlier.verdict
        assert answer.cases == earlier.cases
        for case in answer.measured.cases:
            assert case.ratio is None or not case.low or case.low <= case.ratio <= case.high
    trained, pruned, run = (answer.measured for answer in results.answers)
    assert [case.rival for case in trained.cases] == [
        "dense, iso-total-params",
        "dense, iso-active-params",
    ]
    assert [case.counts for case in trained.cases] == [True, False]
    assert {case.conditions["format"] for case in pruned.cases} == {"CSR", "block-sparse", "2:4"}
    assert [(case.rival, case.conditions["phase"], case.counts) for case in run.cases] == [
        ("dense", "prompts", True),
        ("pruned", "prompts", False),
        ("dense", "decoding", True),
        ("pruned", "decoding", False),
    ]
    assert any("of its experts in memory" in said for said in run.sentences)
    results.write(folder / "out", render)
    assert ClaimsResults.read(folder / "out").answers == results.answers
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("Measured on this machine</h3>") == 3
    again = ClaimMeasurements(names)
    assert again.describe().startswith(f"trained was measured on {trained.made}; pruned was")
    again.measure(lambda *_: pytest.fail("what is kept is not measured again"))


def test_what_is_kept_belongs_to_a_machine_and_to_what_was_asked(folder, monkeypatch):
    claim = load_claim("pruned.toml")
    ClaimMeasurements(["pruned.toml"]).measure()
    kept = read_measured(claim)
    asked = claim.model_copy(update={"real": {"kind": "sparsity", "tokens": [2]}})
    assert read_measured(asked) is None
    assert read_measured(claim.model_copy(update={"real": None})) is None
    with monkeypatch.context() as patch:
        patch.setattr("simulator.lab.commands.claims.name_machine", lambda: "another")
        assert read_measured(claim) is None
    (file,) = (folder / "cache" / "moesim" / "measured").glob("claim-pruned-*.json")
    assert json.loads(file.read_text()) == kept.model_dump(mode="json")
    file.write_text("{}")
    assert read_measured(claim) is None


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (REAL["run"].replace('"moe"', '"mo"'), "tiny.toml has no deployment 'mo'; did you mean"),
        (REAL["run"].replace("tiny.toml", "tin.toml"), "tin.toml"),
        (REAL["trained"].replace("0.02", "-1"), "minutes"),
        ('kind = "executions"', "unknown commands.claim_measurements kind 'executions'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_measured(folder, table, told):
    (folder / "wrong.toml").write_text(f"{COUNTED}\n[real]\n{table}\n")
    with pytest.raises(UserError, match=told):
        ClaimMeasurements(["run.toml", "wrong.toml"])


@pytest.mark.parametrize(
    ("stopped_in", "told", "num_kept"),
    [
        ("pruned", "stopped; no measurement was done, and nothing was written", 0),
        ("run", "stopped; kept what was measured of pruned: the same command goes on", 1),
        ("trying", "stopped; kept what was measured of pruned, run: the same command goes", 2),
    ],
)
def test_ctrl_c_says_what_is_kept(folder, monkeypatch, stopped_in, told, num_kept):
    show = claims.show_part

    def stop_while_measuring(progress, what, *words):
        if what.startswith(f"{stopped_in},"):
            raise KeyboardInterrupt
        show(progress, what, *words)

    def stop_while_trying(*arguments, **keys):
        raise KeyboardInterrupt

    monkeypatch.setattr(claims, "show_part", stop_while_measuring)
    if stopped_in == "trying":
        monkeypatch.setattr(claims, "try_claims", stop_while_trying)
    with pytest.raises(StoppedError, match=told):  # the command would end this process
        cli.claims(["pruned.toml", "run.toml"], out_folder=folder / "never", real=True)
    assert not (folder / "never").exists()
    assert len(list((folder / "cache" / "moesim" / "measured").glob("claim-*.json"))) == num_kept
