"""The search finds what simulating everything would find, keeps what it has done, and repeats
itself exactly.
"""

import itertools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator.commands.plan import plan
from simulator.config.capacity import Question
from simulator.planner.answer import make_answer
from simulator.planner.calibration_error import compute_miss_probability
from simulator.planner.conditions import identity
from simulator.planner.explore import ClusterSize, Evaluation, Explorer, _find_first
from simulator.planner.screen import Candidate, Judge
from simulator.planner.search import best_first, search
from simulator.planner.space import ReplicaShape, Ruled, Space
from simulator.planner.store import STORED_EVALUATION, Store, key_of
from simulator.planner.traffic import lasting, traffic_of
from simulator.planner.trial import Outcome
from simulator.planner.uncertainty.assessment import assess
from simulator.results.plan_sentences import reasons
from tests.findings_database import query, read_findings
from tests.laws.tiny_question import ENGINE
from tests.small_scenario import poisson

pytestmark = pytest.mark.shipped_draws  # as processes that the tests start take

REGRET = 0.02
"""Of the search's choice over the cheapest of the whole space; the issue's limit."""


def question(**changes):
    """Two small models on up to four GPUs: some dozens of deployments, each simulated in
    milliseconds.
    """
    workload = poisson(40.0, 700, 60, 160)
    workload["requests"]["arrivals"] |= {"kind": "gamma", "cv": 1.5}
    table = {
        "name": "small",
        "seed": 1,
        "workload": workload,
        "targets": {"ttft_s": {"p90": 0.6}, "tpot_s": {"p90": 0.012}},
        "models": [{"model": name, "engine": ENGINE} for name in ("qwen3-8b", "gpt-oss-20b")],
        "clusters": [{"cluster": "h100-sxm", "max_gpus": 8}, {"cluster": "l40s", "max_gpus": 8}],
        "space": {
            "tp": [1, 2],
            "attention_dp": [1, 2],
            "token_budgets": [2048],
            "redundant_experts": [0.0],
            "overlap": ["none"],
            "ep": ["all"],
            "disaggregate": False,
        },
    }
    return Question.model_validate({**table, **changes})


@pytest.fixture(scope="module")
def fresh():
    """What a search for the question as it stands finds, without a store."""
    return search(question(), Path(), Store(None), workers=1)


def everything(asked):
    """Every deployment of the space, explored without the screen having a say."""
    asked, _ = lasting(asked, Path())
    space, traffic = Space(asked, Path()), traffic_of(asked, Path())
    budget = max(asked.space.token_budgets)
    for model, machines in itertools.product(range(len(space.models)), range(len(space.machines))):
        shapes = [shape for shape, _ in space.shapes(model, machines, Ruled())]
        pools = shapes if asked.space.disaggregate else []
        for shape, prefill in itertools.product(shapes, [None, *pools]):
            candidate = Candidate(
                shape, budget, prefill, 1, int(prefill is not None), 0.0, 0, 0, 0.0, 0.0
            )
            yield Explorer(space, candidate, traffic, asked.seed).find()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": {"ttft_s": {"p90": 0.3}, "tpot_s": {"p90": 0.006}}},
        {
            "models": [{"model": "qwen3-8b"}],
            "space": {"tp": [1, 2], "attention_dp": [1], "token_budgets": [2048]},
            "targets": {"ttft_s": {"p90": 0.4}, "tpot_s": {"p90": 0.009}},
        },
    ],
    ids=["loose", "tight", "with pools"],
)
def test_nothing_cheaper_is_missed(changes):
    asked = question(**changes)
    found = search(asked, Path(), Store(None), workers=1)
    cheapest = min(evaluation.cost_per_hour for evaluation in everything(asked))
    assert math.isfinite(cheapest)
    assert found.evaluations[0].cost_per_hour <= cheapest * (1 + REGRET)
    assert found.num_legal > 0


PIPELINES = {
    "models": [{"model": "qwen3-32b"}],
    "clusters": [{"cluster": "h100-sxm", "max_gpus": 32}],
    "space": {"tp": [4, 8], "attention_dp": [1], "pp": [2], "token_budgets": [2048]},
    "targets": {"ttft_s": {"p90": 2.0}, "tpot_s": {"p90": 0.1}},
    "workload": poisson(6.0, 500, 60, 80),
}


@pytest.mark.parametrize("changes", [{}, PIPELINES], ids=["in a node", "pipelines"])
def test_the_screen_reads_rates_optimistically(changes):
    """What a replica carries in simulation lies below the screen's optimistic reading."""
    asked, _ = lasting(question(**changes), Path())
    space, traffic = Space(asked, Path()), traffic_of(asked, Path())
    judge, found = Judge(space, traffic), 0
    for model in range(len(space.models)):
        for shape, plan_ in space.shapes(model, 0, Ruled()):
            rates = judge.best(judge.both(plan_, judge.curve(shape, plan_), 2048))
            candidate = Candidate(shape, 2048, None, 1, 0, 0.0, 0, 0, 0.0, 0.0)
            size = Explorer(space, candidate, traffic, 1).find().cluster_size
            assert size is not None
            assert rates.most * size.replicas >= traffic.rate_per_s * 0.99, space.text(shape)
            found += 1
    assert found


@pytest.mark.slow
@pytest.mark.xdist_group("ray-apart")
def test_an_answer_repeats_itself_whoever_works_on_it(tmp_path):
    asked = question(clusters=[{"cluster": "h100-sxm", "max_gpus": 4}])
    first = plan(asked, cache=Store(tmp_path / "a"), workers=1)
    again = plan(asked, cache=Store(tmp_path / "b"), workers=2)
    kept = plan(asked, cache=Store(tmp_path / "a"), workers=1)
    assert first.model_dump_json() == again.model_dump_json() == kept.model_dump_json()


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(fresh, tmp_path):
    """What was finished is neither lost nor done again, and no file is half written."""
    asked, folder = question(), tmp_path / "store"
    program = (
        "import sys; from pathlib import Path; from simulator.planner.search import search; "
        "from simulator.planner.store import Store; from simulator.config.capacity import "
        "Question; search(Question.model_validate_json(sys.argv[1]), Path(), "
        "Store(Path(sys.argv[2])), workers=1)"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program, asked.model_dump_json(), str(folder)]
    )
    try:
        for _ in range(2400):
            if len(read_findings(folder)) >= 3 or running.poll() is not None:
                break
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
    finally:
        running.wait()
    done = query(folder, "SELECT rowid, digest, value FROM findings")  # written again: another row
    assert len(done) >= 3
    for _, _, value in done:
        json.loads(value)
    found = search(asked, Path(), Store(folder), workers=1)
    more = query(folder, "SELECT rowid, digest, value FROM findings")
    assert set(more) > set(done)
    assert [
        STORED_EVALUATION.dump_json(one._replace(was_stored=False)) for one in found.evaluations
    ] == [STORED_EVALUATION.dump_json(one) for one in fresh.evaluations]


def test_a_recording_that_a_model_names_itself_is_part_of_the_key(tmp_path):
    shipped = (Path(__file__).parents[2] / "workloads/models/olmoe-1b-7b.toml").read_text()
    head, _, rest = shipped.partition("[routing]")
    (tmp_path / "own.toml").write_text(
        f'{head}[routing]\nkind = "replay"\ntrace = "own.npz"\n\n'
        f"{rest[rest.index('[published]') :]}"
    )
    asked = question(models=[{"model": "own.toml"}])
    (tmp_path / "own.npz").write_bytes(b"of Monday")
    space, traffic = Space(asked, tmp_path), traffic_of(asked, Path())
    candidate = evaluation(1.0).candidate
    explorer = Explorer(space, candidate, traffic, asked.seed)
    before = key_of(identity(explorer))
    assert key_of(identity(explorer)) == before
    (tmp_path / "own.npz").write_bytes(b"of Tuesday")
    assert key_of(identity(explorer)) != before


def identify(asked):
    """The key of one candidate's trials of a question, on the traffic of the usual one."""
    candidate, traffic = evaluation(1.0).candidate, traffic_of(question(), Path())
    return key_of(identity(Explorer(Space(asked, Path()), candidate, traffic, asked.seed)))


@pytest.mark.parametrize(
    ("changes", "is_another"),
    [
        ({"name": "another", "notes": "of Tuesday"}, False),
        ({"power": {"price_per_kwh": 0.3}}, False),
        ({"spare": {"nodes": 1}}, True),
        ({"spare": {"gpus": 1}}, True),
        ({"failures": {"mtbf_gpu_hours_low": 100}}, False),
        ({"failures": {"availability": 0.9}}, True),
        ({"failures": {"node_share": 0.1}}, False),
        ({"seed": 2}, True),
        ({"targets": {"tpot_s": {"p50": 0.012}}}, True),
        ({"clusters": [{"cluster": "h100-sxm", "max_gpus": 16}]}, True),
        ({"clusters": [{"cluster": "h100-sxm", "max_gpus": 8, "network_speed": 0.5}]}, True),
    ],
)
def test_the_key_tells_apart_what_a_finding_depends_on_and_nothing_else(changes, is_another):
    assert (identify(question()) != identify(question(**changes))) == is_another


def test_two_folders_with_a_model_of_one_name_do_not_share_its_steps(tmp_path):
    shipped = (Path(__file__).parents[2] / "workloads/models/qwen3-8b.toml").read_text()
    outcomes = []
    for layers in (36, 12):
        folder = tmp_path / str(layers)
        folder.mkdir()
        own = shipped.partition("[published]")[0].replace("repeat = 36", f"repeat = {layers}")
        (folder / "own.toml").write_text(own)
        asked = question(models=[{"model": "own.toml"}])
        one = Explorer(
            Space(asked, folder), evaluation(1.0).candidate, traffic_of(asked, Path()), 1
        )
        outcomes.append(one.trial(ClusterSize(0, 2)).measured["tpot_s.p90"])
    assert outcomes[1] < 0.7 * outcomes[0]


@pytest.mark.slow
def test_a_search_goes_on_without_a_store_that_cannot_be_written(fresh, tmp_path):
    (tmp_path / "store").touch()  # a file, in which no entry can be
    with pytest.warns(RuntimeWarning, match="is not kept for another search") as said:
        found = search(question(), Path(), Store(tmp_path / "store"), workers=1)
    assert len(said) == 1
    assert found.evaluations == fresh.evaluations


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_bisection_finds_the_first_place_wherever_it_begins(count):
    for first, start in itertools.product(range(count + 1), range(count)):
        assert _find_first(count, start, lambda n, f=first: n >= f) == (
            first if first < count else None
        )


def evaluation(worst, *, cost=10.0, gpus=4, used=4, slots=0, pool=False, risk=0.0):
    shape = ReplicaShape(0, 0, 1, 1, 1, "", "bf16", slots, "none")
    candidate = Candidate(
        shape, 2048, shape if pool else None, used, int(pool), cost, gpus, gpus, 0.01, 0.1
    )
    return Evaluation(
        candidate,
        ClusterSize(4, used, int(pool)),
        Outcome({"tpot_s.p90": worst}, {"tpot_s.p90": worst}, 1.0, math.nan),
        cost,
        risk=risk,
    )


def test_ties_go_to_what_is_safer_and_then_to_what_is_simpler():
    """Each beats the one behind it at the same price; a lower price beats all of them."""
    ordered = [
        evaluation(0.99, cost=9.0, pool=True),
        evaluation(0.5, gpus=2, used=3),
        evaluation(0.5, gpus=2, used=4),
        evaluation(0.7, gpus=2),
        evaluation(0.2, gpus=3),
        evaluation(0.2, gpus=1, slots=8),
        evaluation(0.2, gpus=1, slots=8, pool=True),
        evaluation(0.85),
        evaluation(0.95),
        evaluation(0.95, pool=True),
        evaluation(0.5, risk=0.2),
        evaluation(1.2, cost=math.inf),
        evaluation(1.3, cost=math.inf),
    ]
    for order in (ordered[::-1], sorted(ordered, key=lambda one: one.num_gpus)):
        assert sorted(order, key=best_first) == ordered


def test_what_was_missed_is_kept_with_the_size_it_was_missed_at():
    found = search(question(targets={"tpot_s": {"p90": 0.001}}), Path(), Store(None), workers=1)
    missed = found.evaluations[0]
    assert missed.cluster_size is None
    assert missed.most is not None
    text = STORED_EVALUATION.dump_json(missed)
    again = STORED_EVALUATION.validate_json(text, strict=True)
    assert (again.most, again.why) == (missed.most, missed.why)


def test_another_price_simulates_nothing_again(tmp_path):
    kept = search(question(), Path(), Store(tmp_path), workers=1)
    dearer = [
        {**cluster.model_dump(exclude_none=True), "price_per_gpu_hour": 9.0}
        for cluster in question().clusters
    ]
    found = search(question(clusters=dearer), Path(), Store(tmp_path), workers=1)
    known = {one.candidate._replace(cost_per_hour=0.0) for one in kept.first}
    for one in found.first:
        if one.candidate._replace(cost_per_hour=0.0) in known:
            assert one.was_stored
        if one.cluster_size is not None:
            assert one.cost_per_hour == 9.0 * one.cluster_size.size


def test_what_is_likely_to_miss_a_target_says_so():
    asked, _ = lasting(question(), Path())
    space, traffic = Space(asked, Path()), traffic_of(asked, Path())
    shape, made = next(space.shapes(0, 0, Ruled()))
    explorer = Explorer(space, Candidate(shape, 2048, None, 1, 0, 0.0, 0, 0, 0.0, 0.0), traffic, 1)
    loose, tight = (
        compute_miss_probability(
            made, Outcome({"tpot_s.p90": ratio, "ttft_s.p90": 0.01}, {}, 1.0, math.nan), 100
        )
        for ratio in (0.2, 0.999)
    )
    assert loose < 0.01
    assert 0.1 < tight < 0.9
    assert 0 <= explorer.find().risk <= 1


def test_no_probability_is_of_hits_that_were_drawn():
    """Bands know nothing of how real tokens repeat their experts."""
    asked = question(
        models=[
            {
                "model": "mixtral-8x7b",
                "engine": "any",
                "weight_dtypes": ["int4"],
                "deployment": {"offload": {"slots": 5}},
            }
        ],
        clusters=[{"cluster": "desktop-rtx-4090", "max_gpus": 1}],
        space={"tp": [1], "attention_dp": [1], "token_budgets": [2048]},
        targets={"ttft_s": {"p90": 60.0}, "tpot_s": {"p90": 1.0}},
        workload=poisson(0.01, 60, 10, 20),
    )
    found = search(asked, Path(), Store(None), workers=1)
    answer = make_answer(found, assess(found, workers=1))
    assert answer.recommended is not None
    assert answer.confidence.meets_targets is None
    assert "plan.unlikely" not in [one.kind for one in reasons(answer)]
