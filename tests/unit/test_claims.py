"""Claims: the rule of verdicts, maps and turns, and small claims that are tried for real."""

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.commands.check import check
from simulator.config.claim import list_claims, load_claim
from simulator.lab.commands.claims import try_claims
from simulator.lab.report.claims_page import render
from simulator.lab.results.claims import (
    Case,
    ClaimsResults,
    list_advice,
    list_turns,
    make_map,
    reach_verdict,
    say_whether,
)
from tests.cases import cases

CASES = st.lists(
    st.builds(
        Case,
        rival=st.sampled_from(["large", "good"]),
        conditions=st.fixed_dictionaries(
            {"load": st.sampled_from(["1", "8"]), "network": st.sampled_from(["slow", "fast"])}
        ),
        ratio=st.just(1.0),
        low=st.floats(0.1, 3.0),
        high=st.floats(0.1, 3.0),
        runs=st.sampled_from(["both", "both", "moe", "rival"]),
        counts=st.booleans(),
    ).map(lambda case: case.model_copy(update={"high": max(case.low, case.high)})),
    min_size=1,
    max_size=30,
)
COUNTED = """
title = "Sparsity saves something."
asks = "Does it?"
maps = [["what", "rival"]]

[trial]
kind = "sparsity"
models = ["olmoe-1b-7b"]
batches = [1, 64]
sparsities = [0.5, 0.9]

[[evidence]]
text = "Somebody measured it."
source = "here"
speaks = "open"
"""
SERVED = """
title = "A mixture of experts is served faster."
asks = "Is it?"

[trial]
kind = "serving"
models = ["olmoe-1b-7b"]
cluster = "h100-sxm"
gpus = 2
engines = ["trtllm"]
weight_dtype = "fp8"
batches = [1, 16]
prompts = [1024]
output_tokens = 128
networks = [1.0]
skews = [0, 1]
served_requests = 20
"""
TRAINED = """
title = "A mixture of experts is trained faster."
asks = "Is it?"

[trial]
kind = "training"
model = "olmoe-1b-7b"
clusters = ["h100-sxm"]
gpus = 8
sequence_tokens = [4096]
batch_tokens = 524288
tokens = [1e11]
laws = ["joint-moe"]
skews = [0, 0.45]
"""
ON_A_DEVICE = """
title = "Mixtures of experts are for devices."
asks = "Are they?"

[trial]
kind = "device"
devices = ["laptop-m4"]
mixtures = ["olmoe-1b-7b"]
dense = ["qwen3-8b"]
shapes = [[64, 8]]
speeds = [5, 20]
weight_dtype = "int4"
law = "joint-moe"
tokens = 1e12
"""


def case(low, high, counts=True, **conditions):
    return Case(rival="one", conditions=conditions, ratio=low, low=low, high=high, counts=counts)


FOR, AGAINST, OPEN = case(1.2, 1.4), case(0.5, 0.7), case(0.9, 1.1)


@pytest.mark.parametrize(
    ("tried", "verdict"),
    [
        ([FOR] * 9 + [OPEN], "confirmed"),
        ([FOR] * 8 + [OPEN] * 2, "bounded"),
        ([FOR] * 30 + [AGAINST], "bounded"),
        ([AGAINST] * 9 + [OPEN], "refuted"),
        ([OPEN], "bounded"),
        ([FOR, case(0.1, 0.2, counts=False)], "confirmed"),
    ],
)
def test_a_verdict_follows_from_the_cases_that_count(tried, verdict):
    assert reach_verdict(tried) == verdict


def test_a_case_that_only_one_side_can_run_speaks_for_that_side():
    outcomes = [Case(rival="r", conditions={}, runs=runs).outcome for runs in ("moe", "rival")]
    assert outcomes == ["for", "against"]
    assert (FOR.outcome, AGAINST.outcome, OPEN.outcome) == ("for", "against", "open")


@cases(60)
@given(CASES)
def test_turns_and_maps_count_every_case_once(tried):
    by_condition = {}
    for turn in list_turns(tried):
        assert 0 <= turn.num_for + turn.num_against <= turn.num_cases
        by_condition.setdefault(turn.condition, []).append(turn)
    for condition, turns in by_condition.items():
        assert sum(turn.num_cases for turn in turns) == len(tried), condition
        assert sum(turn.num_for for turn in turns) == sum(one.outcome == "for" for one in tried)
    rows, columns, cells = make_map(tried, "load", "network")
    counted = [one for one in tried if one.counts]
    assert sum(len(cell.cases) for cell in cells.values()) == len(counted)
    assert {*rows} <= {"1", "8"}
    assert {*columns} <= {"slow", "fast"}


def test_advice_is_by_the_condition_that_turns_a_claim_most():
    loads = {"1": (1.2, 1.6), "8": (0.4, 0.7)}
    tried = [
        case(low, 1.01 * low, load=load, network=network)
        for load, ends in loads.items()
        for low, network in zip(ends, ("slow", "fast"), strict=True)
    ]
    assert [tuple(one) for one in list_advice([*tried, case(9, 9, counts=False, load="9")])] == [
        ("load: 1", "yes", "1.2 to 1.6 times"),
        ("load: 8", "no", "0.4 to 0.7 times"),
    ]
    assert [tuple(one) for one in list_advice([FOR, FOR])] == [("", "yes", "1.2 times")]


@cases(60)
@given(CASES)
def test_another_case_for_a_claim_never_turns_its_verdict_against_it(tried):
    ranks = {"refuted": 0, "bounded": 1, "confirmed": 2}
    for more, order in ((FOR, 1), (AGAINST, -1)):
        before, after = reach_verdict(tried), reach_verdict([*tried, more])
        counted = any(one.counts for one in tried)
        assert not counted or order * (ranks[after] - ranks[before]) >= 0


def test_every_shipped_claim_is_right_and_has_evidence():
    assert list_claims() == ["training", "inference", "sparsity", "device"]
    for name in list_claims():
        claim = load_claim(name)
        assert claim.evidence
        assert check(str(available_files("workloads/claims")[name])).kind == "claim"


def try_one(tmp_path, text, seed=1, num_seeds=1):
    file = tmp_path / "own.toml"
    file.write_text(text, encoding="utf-8")
    return try_claims([str(file)], seed=seed, num_seeds=num_seeds)


def test_a_claim_that_is_counted_is_written_and_read_back(tmp_path):
    results = try_one(tmp_path, COUNTED)
    answer = results.answers[0]
    assert answer.verdict == "bounded"
    by_what = {
        (one.rival, one.conditions["what"]): one
        for one in answer.cases
        if "model" in one.conditions
    }
    compute = by_what["dense, iso-total-params", "compute of a token"]
    assert compute.outcome == "for"
    assert compute.ratio > 4
    assert by_what["dense, iso-total-params", "weights to store"].ratio == 1.0
    assert by_what["dense, iso-loss", "weights to store"].outcome == "against"
    folder = tmp_path / "out"
    results.write(folder, render)
    again = ClaimsResults.read(folder)
    assert again.answers == results.answers
    assert json.loads(json.dumps(results.run)) == results.run
    assert len(pd.read_csv(folder / "claims.csv")) == len(answer.cases)
    assert (folder / "report.html").is_file()


def test_the_iso_loss_rival_of_each_law_needs_as_many_tokens_by_that_law(tmp_path, monkeypatch):
    """Where all models make as many tokens a second, the ratio is that of tokens; sizes are met
    within 1 %, embeddings included.
    """
    monkeypatch.setattr(
        "simulator.lab.commands.claim_tests.training._measure_rate", lambda table, seed: 1.0
    )
    text = TRAINED.replace("olmoe-1b-7b", "qwen3-30b-a3b").replace("[1e11]", "[1e11, 2e12]")
    text = text.replace('["joint-moe"]', '["joint-moe", "fine-grained-moe"]')
    cases_of = try_one(tmp_path, text).answers[0].cases
    good = [one for one in cases_of if one.rival == "dense, iso-loss"]
    assert {one.conditions["law"] for one in good} == {"joint-moe", "fine-grained-moe"}
    assert len({one.conditions["tokens"] for one in good}) == 2
    assert [one.ratio for one in good] == pytest.approx([1.0] * len(good), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("text", [SERVED, TRAINED, ON_A_DEVICE], ids=["serve", "train", "device"])
def test_another_seed_gives_the_same_verdict(tmp_path, text):
    first, second = (try_one(tmp_path, text, seed).answers[0] for seed in (1, 7))
    assert first.verdict == second.verdict
    for one, other in zip(first.cases, second.cases, strict=True):
        assert {one.outcome, other.outcome} != {"for", "against"}, one.conditions
    assert len(first.cases) >= 2
    assert all(one.ratio is None or one.low <= one.ratio <= one.high for one in first.cases)


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        ([], "not tried"),
        ([FOR], "yes"),
        ([FOR, FOR, OPEN], "mostly"),
        ([FOR, AGAINST], "it depends"),
        ([AGAINST, OPEN], "undecided"),
        ([AGAINST, case(1.0, 1.0)], "no"),
    ],
)
def test_no_is_said_where_no_case_may_speak_for_a_claim(tried, said):
    assert say_whether(tried) == said


@pytest.mark.slow
def test_bands_of_the_best_model_hold_what_each_other_law_finds_best(tmp_path):
    laws = ["fine-grained-moe", "routed-rl-r", "geometric-mean"]
    several = ON_A_DEVICE.replace("tokens = 1e12", f"tokens = 1e12\nother_laws = {laws}")
    banded = try_one(tmp_path, several.replace("'", '"')).answers[0].cases
    assert any(one.outcome == "open" for one in banded if one.ratio)
    for law in ("joint-moe", *laws):
        alone = try_one(tmp_path, ON_A_DEVICE.replace("joint-moe", law)).answers[0].cases
        for one, other in zip(banded, alone, strict=True):
            assert one.ratio is None or one.low < other.ratio < one.high


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (COUNTED.replace('"sparsity"', '"sparse"'), "unknown commands.claim_tests kind 'sparse'"),
        (COUNTED.replace("batches = [1, 64]", "batches = []"), "batches must be"),
        (TRAINED.replace("gpus = 8", "gpus = 12"), "gpus is 12.* name a multiple of 8"),
        (SERVED.replace("[1, 16]", "[0.25, 16]"), "batches has 0.25 on each .* use at least 0.5"),
        (ON_A_DEVICE.replace("[5, 20]", "[1e5]"), "no model runs under any of these conditions"),
    ],
)
def test_what_is_wrong_with_a_claim_is_told(tmp_path, text, told):
    with pytest.raises(UserError, match=told):
        try_one(tmp_path, text)


@pytest.mark.parametrize("wrong", [("joint-moe", "joint"), ("h100-sxm", "h1oo-sxm")])
def test_wrong_names_are_told_before_anything_is_simulated(tmp_path, monkeypatch, wrong):
    trainings = []
    monkeypatch.setattr(
        "simulator.lab.commands.claim_tests.training._measure_rate",
        lambda *asked: trainings.append(asked) or 1.0,
    )
    with pytest.raises(UserError, match="unknown"):
        try_one(tmp_path, TRAINED.replace(*wrong))
    assert not trainings
