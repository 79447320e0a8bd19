"""What is wrong with a question is said in one line that names the file, the key and what would be
right; limits that leave nothing are an answer, not an error.
"""

import json
import re
from pathlib import Path

import pytest

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.commands.plan import plan
from simulator.commands.run import run
from simulator.config.capacity import Question
from simulator.planner import space as reasons
from simulator.planner.answer import explain_models, find_nearest
from simulator.planner.explore import ClusterSize
from simulator.planner.search import search
from simulator.planner.space import Ruled, Space
from simulator.planner.store import Store
from simulator.planner.traffic import traffic_of
from simulator.planner.uncertainty.sensitivity import rivals
from simulator.scenario.jobs import load_question, load_scenario
from tests.laws import tiny_question
from tests.small_scenario import poisson
from tests.unit.test_plan_cli import QUESTION


@pytest.fixture
def ask(moesim, tmp_path):
    def run(*arguments, text=QUESTION):
        (tmp_path / "asked.toml").write_text(text, encoding="utf-8")
        return moesim("plan", "asked.toml", "--workers", 1, "--cache", "kept", *arguments)

    return run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("clusters.0.cluster=h100-sxm-8", 'write cluster = "h100-sxm" and max_gpus = 8'),
        ("clusters.0.cluster=h100", "choose one of: h100-pcie, h100-sxm"),
        ("models.0.model=gpt-oss-200b", ("[models entry 1 of 2]: unknown model 'gpt-oss-200b'; did you mean 'gpt-oss-20b'?")),
        ("models.1.model=gpt-oss-20b", "models lists 'gpt-oss-20b' twice"),
        ("targetz=1", "unknown key 'targetz'; did you mean 'targets'?"),
        ("targets={}", "sets no target; give one, such as tpot_s = { p90 = 0.05 }"),
        ("targets.ttft_s=1.0", "write { p90 = 1.0 }"),
        ("failures.availability=1", "availability must be below 1; no number of spare replicas"),
        ('models.1.routing={ kind = "zipf", exponent = 1.0 }', ("qwen3-8b is dense and routes nothing; leave it out")),
        ("targets.output_tokens_per_s=9000", ("asked.toml [targets]: output_tokens_per_s = 9000 is more than the requests ask for")),
        ("workload.requests.num_requests=1", "one request has no rate"),
        ("models.0.deployment.replicas=2", "has replicas, which the search decides; say in targets and limits"),
        ('space.keys={ "scheduling.token_budget" = [1024] }', "which the search decides; say in space.token_budgets"),
        (f'space.keys={{ "memory_fraction" = [{", ".join(f"0.{n}" for n in range(500, 700))}] }}', "makes 400 variants of the models, which is more than space.max_variants = 200: about 13 minutes"),
        (('workload.requests.arrivals={ kind = "closed_loop", concurrency = 4 }'), ("is a closed loop")),
    ],
)  # fmt: skip
def test_a_wrong_question_is_refused_in_one_line(ask, tmp_path, change, said):
    code, out, err = ask("--set", change)
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line]
    assert line.startswith("error: asked.toml ")
    assert said in line
    assert not (tmp_path / "reports").exists()


def test_files_that_are_no_question_are_told_apart(ask, moesim, tmp_path):
    assert "is empty" in ask(text="")[2]
    assert "missing key 'targets'" in ask(text=re.sub(r"\[targets\]\n.*\n.*\n", "", QUESTION))[2]
    assert "is a scenario, which moesim run takes" in ask(text="deployments = []\n")[2]
    (tmp_path / "plan.toml").write_text(QUESTION, encoding="utf-8")
    code, _, err = moesim("run", "plan.toml")
    assert (code, "is a plan, which moesim plan takes" in err) == (2, True)
    (tmp_path / "lengths.csv").write_text(
        "num_prefill_tokens,num_decode_tokens\n" + "5,5\n" * 3, encoding="utf-8"
    )
    text = re.sub(
        r"\[workload.requests\]\n.*\n.*\n.*\n", '[workload]\nrequests = "lengths.csv"\n', QUESTION
    )
    code, _, err = ask(text=text)
    assert code == 2
    assert "lists lengths without arrival times; add arrivals" in err


def test_folders_that_cannot_be_written_are_refused_before_any_work(ask, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for candidate in ("--out", "--cache"):
        code, out, err = ask(candidate, "file/below")
        assert code == 2
        assert out == ""
        assert f"error: {candidate} file/below: cannot be written" in err


TABLE = {
    "name": "two",
    "seed": 3,
    "workload": poisson(20.0, 512, 64, 60),
    "targets": {"tpot_s": {"p90": 0.05}},
    "models": [{"model": "qwen3-8b"}],
    "clusters": [{"cluster": "h100-sxm", "max_gpus": 2}],
    "space": {"tp": [1], "attention_dp": [1, 2], "token_budgets": [2048], "disaggregate": False},
}


def test_a_budget_for_nothing_is_an_answer(ask):
    code, out, err = ask("--set", "limits.budget_per_hour=1", "--json")
    assert code == 3, err
    answer = json.loads(out)
    reason = answer["why_not_models"]["qwen3-8b"]["text"]
    assert "2.50 USD per hour, and the budget of 1 USD" in reason
    assert reason in answer["headline"]
    assert answer["recommended"] is None


ONE_GB200 = [{"cluster": "gb200"}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limits": {"power_w": 10}}, "limits.power_w = 10 is the limit"),
        ({"clusters": [ONE_GB200[0] | {"max_gpus": 2}]}, "max_gpus = 2 is the limit"),
        ({"limits": {"gpus": 1}, "clusters": ONE_GB200}, "limits.gpus = 1 is the limit"),
        ({"spare": {"nodes": 2}}, "leaves nothing of the 2 GPUs of h100-sxm that max_gpus = 2"),
    ],
)
def test_limits_that_leave_nothing_are_named(changes, said):
    assert said in Space(validate(Question, TABLE | changes, "test"), Path()).machines[0].beyond


@pytest.mark.parametrize("unit", ["gpus", "nodes"])
@pytest.mark.parametrize("held", [0, 1, 7, 8, 9])
def test_what_is_held_free_is_refused_only_where_it_is_all_there_is(unit, held):
    """Eight GPUs, which are rented one by one: the least that a node may be."""
    clusters = [{"cluster": "h100-sxm", "max_gpus": 8}]
    asked = TABLE | {"clusters": clusters, "spare": {unit: held}}
    machines = Space(validate(Question, asked, "test"), Path()).machines[0]
    assert machines.sizes == (1, 2, 4, 8)
    assert (machines.beyond == "") == (held < 8)


def found(**changes):
    return search(validate(Question, TABLE | changes, "test"), Path(), Store(None), workers=1)


def test_a_deployment_is_counted_once_and_compared_once_whatever_size_it_has():
    """The screen expects another number of replicas than is found; with few requests the first
    round has all of them.
    """
    few = found(
        clusters=[{"cluster": "h100-sxm", "max_gpus": 8}], targets={"tpot_s": {"p90": 0.012}}
    )
    best = next(one for one in few.evaluations if one.cluster_size is not None)
    assert few.num_simulated == len(few.first)
    here = (best.candidate.shape.model, best.candidate.shape.machines)
    expected = best.candidate._replace(replicas=best.candidate.replicas + 1)
    screened = few.screened[here]._replace(candidates=[expected])
    assert rivals(few._replace(screened={here: screened}), best).select_at(8.0) == (best.candidate,)
    moved = few.first[0]._replace(
        candidate=few.first[0].candidate._replace(replicas=7),
        cluster_size=ClusterSize(8, 3),
    )
    again = moved._replace(candidate=moved.candidate._replace(replicas=3))
    assert few._replace(first=[moved], evaluations=[again]).num_simulated == 1
    dearer = again._replace(cost_per_hour=1.0)
    assert few._replace(first=[moved], evaluations=[dearer]).num_simulated == 2


def test_a_peak_that_is_longer_than_the_requests_is_said():
    asked = validate(Question, TABLE | {"peak_s": 1e6}, "test")
    traffic = traffic_of(asked, Path())
    (note,) = traffic.trace.notes
    assert "peak_s = 1e+06 is longer than it" in note
    assert traffic.lead == 0


def test_a_cluster_beyond_the_limits_leaves_the_others():
    prices = {"h100-sxm": {"price_per_gpu_hour": 9.0}, "l40s": {"price_per_gpu_hour": 1.0}}
    both = [{"cluster": name, "max_gpus": 2, **keys} for name, keys in prices.items()]
    answer = found(clusters=both, limits={"budget_per_hour": 4.0})
    assert answer.space.machines[0].sizes == ()
    assert answer.evaluations[0].candidate.shape.machines == 1
    assert answer.evaluations[0].cluster_size is not None
    assert any("9.00 USD per hour" in reason for reason in answer.ruled.counts)


def test_every_model_that_does_not_do_has_its_reason():
    """By a target where a deployment could be tried, by memory where none could."""
    answer = found(
        models=[{"model": "qwen3-8b"}, {"model": "llama-3.1-405b"}],
        targets={"tpot_s": {"p90": 0.001}},
    )
    told = explain_models(answer)
    assert told["llama-3.1-405b"].text.startswith(reasons.MEMORY)
    missing = told["qwen3-8b"]
    assert missing.target == "tpot_s.p90"
    assert missing.times_over > 1
    assert "on 2 GPUs, all that max_gpus = 2 allows" in missing.text
    assert find_nearest(answer) == missing
    row = missing.row
    assert (row.gpus, row.replicas) == (2, 2)
    assert row.cost_per_hour == 2 * answer.space.machines[0].gpu_hour
    assert row.worst_ratio == missing.times_over


@pytest.mark.parametrize("telling", ["TOO_FEW", "TOO_SLOW", "MEMORY", "TOO_LARGE"])
def test_a_reason_about_splits_never_hides_one_about_limits(telling):
    ruled = Ruled()
    for structural in ("ALIKE", "HEADS", "LEAVES_NODE", "PART_OF_A_NODE"):
        ruled.leave_out(getattr(reasons, structural), "", 1000)
    assert ruled.telling() != reasons.ALIKE
    ruled.leave_out("a reason of an engine's own", "", 5)
    assert ruled.telling() == "a reason of an engine's own"
    ruled.leave_out(getattr(reasons, telling), "", 1)
    assert ruled.telling() == getattr(reasons, telling)


def test_a_model_whose_context_is_too_short_is_ruled_out():
    answer = found(workload=poisson(20.0, 50_000, 64, 4), targets={"ttft_s": {"p90": 600.0}})
    assert "40,960 tokens" in explain_models(answer)["qwen3-8b"].text


def test_nothing_that_refuses_a_prompt_is_recommended():
    """Whole prompts of TensorRT-LLM that are longer than a step: in chunks where the search may
    choose, else in larger steps, or not at all.
    """
    whole = {"deployment": {"scheduling": {"chunked_prompts": False}}}

    def ask(token_budgets, **more):
        return found(
            models=[{"model": "llama-3.1-8b", "engine": "trtllm", **more}],
            clusters=[{"cluster": "h100-sxm", "max_gpus": 2}],
            workload=poisson(2.0, 3000, 16, 40),
            targets={"ttft_s": {"p90": 5.0}},
            space=TABLE["space"] | {"tp": [1], "token_budgets": token_budgets},
        )

    chunked = ask([2048])
    assert chunked.evaluations[0].candidate.shape.prompts == "chunked"
    larger = ask([2048, 4096], **whole)
    assert {one.candidate.budget for one in larger.evaluations} == {4096}
    assert reasons.REFUSES in larger.ruled.counts
    assert not ask([2048], **whole).met


def test_only_what_has_room_for_the_longest_request_is_simulated():
    """One long request among short ones: replicas of one GPU could never serve it, those of two
    can.
    """
    asked = {
        "models": [{"model": "llama-3.1-8b"}],
        "clusters": [{"cluster": "rtx-4090", "max_gpus": 4}],
        "workload": poisson(2.0, 60_000, 16, 4),
        "peak_s": 60.0,
        "targets": {"ttft_s": {"p90": 600.0}},
        "space": TABLE["space"] | {"tp": [1, 2, 4], "attention_dp": [1], "pp": [1]},
    }
    answer = found(**asked)
    assert reasons.NO_CACHE in answer.ruled.counts
    assert all(one.outcome is not None for one in answer.evaluations), [
        one.why for one in answer.evaluations
    ]
    assert answer.evaluations[0].candidate.shape.tp > 1


def test_a_key_that_is_given_twice_is_refused():
    entry = {"model": "qwen3-8b", "deployment": {"scheduling": {"watermark": 0.1}}}
    with pytest.raises(UserError, match=r"sets scheduling\.watermark; give it once"):
        load_question(tiny_question.QUESTION | {
            "models": [entry],
            "space": {"keys": {"scheduling": [{"kind": "chunked"}]}},
        })  # fmt: skip


@pytest.mark.slow
def test_further_keys_are_tried_and_run_as_planned(tmp_path):
    models = [{"model": "llama-3.1-8b", "deployment": {"usage": "server", "kv_block_tokens": 32}}]
    keys = {"memory_fraction": [0.5, 0.9], "scheduling.watermark": [0.0, 0.05]}
    asked = tiny_question.QUESTION | {
        "models": models,
        "space": tiny_question.QUESTION["space"] | {"keys": keys, "disaggregate": False},
    }
    answer = plan(asked, folder=tmp_path / "out", cache=tmp_path / "cache", workers=1)
    assert answer.num_simulated >= 4
    assert [model.name for model in answer.models] == ["llama-3.1-8b"]
    scenario = load_scenario(tmp_path / "out/recommended.toml")
    spec = scenario.deployments[0]
    assert spec.kv_block_tokens == 32
    assert spec.memory_fraction in keys["memory_fraction"]
    assert spec.scheduling["watermark"] in keys["scheduling.watermark"]
    assert f"memory_fraction = {spec.memory_fraction}" in answer.recommended.deployment
    summary = run(scenario).summary.iloc[0]
    assert summary["output_tokens_per_s"] == answer.recommended.output_tokens_per_s
