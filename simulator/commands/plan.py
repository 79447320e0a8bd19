"""``moesim plan``: the cheapest deployment that meets the targets, or the cheapest split of a
training that ends in time.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.base.caches import findings_folder
from simulator.base.errors import UserError
from simulator.base.progress import Progress, show_nothing
from simulator.base.writing import toml_text
from simulator.config.capacity import Question
from simulator.config.named import join_name, split_name
from simulator.config.training_question import TrainingQuestion
from simulator.deployment.training.plan import list_training_notes
from simulator.parallel.work_list import check_count
from simulator.parallel.workers import Workers
from simulator.planner.answer import make_answer, ready
from simulator.planner.conditions import forget_files
from simulator.planner.search import search
from simulator.planner.store import Store
from simulator.planner.training import Trained, TrainingSearch
from simulator.planner.uncertainty.assessment import assess
from simulator.report.plan_page import render
from simulator.results.answer import Answer
from simulator.results.answer.folder import PlanResults
from simulator.results.provenance import Provenance
from simulator.results.results_folder import make_verdict
from simulator.results.training_answer import COLUMNS, TrainingAnswer, find_training_answer
from simulator.runtime import require
from simulator.scenario.jobs import Source, load_job, load_question
from simulator.work.flops import trained_flops


def plan(
    question: Source,
    *,
    folder: str | Path | None = None,
    cache: str | Path | Store | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress = show_nothing,
) -> Answer:
    """Find the cheapest deployments, MoE or dense, that meet latency targets for a workload.

    The answer is the same for the same question, seed and version. A search that is interrupted
    keeps its simulations, and goes on where it was when it is asked again.

    Args:
        question: as :func:`load_question` takes it, which also overrides keys.
        folder: results folder to write, with the report; ``None`` = none.
        cache: folder where finished simulations are kept; ``None`` = in the user's cache folder.
        workers: processes; ``None`` = one a core, or one a CPU of the cluster.
        address: Ray cluster (``host:port``) whose nodes simulate.
        progress: called with the name of a part of the work, how much of it is done, how much there
            is (``None`` where that is unknown) and, in a search, the best deployment so far, which
            is absent elsewhere: ``progress(name, done, total, best="")``.

    Raises:
        UserError: if the question is wrong, the cluster cannot be joined, or a folder cannot be
            written.
    """
    check_count(workers)
    if address is not None:
        require("ray", "--address")
    if not isinstance(question, Question):
        question = load_question(question)
    target = None if folder is None else Path(folder)
    if target is not None:
        PlanResults.check_writable(target)
    store = cache if isinstance(cache, Store) else Store(Path(cache or findings_folder()))
    store.check_writable()
    made, where = Provenance.begin(), question.where
    forget_files()  # before workers begin with what it has
    try:
        with Workers(workers, address, ready) as pool:
            found = search(question, question.folder, store, progress, pool)
            assessed = assess(found, progress, pool)
            pool.shut_down()
            answer = make_answer(found, assessed, target)
    except UserError as error:
        raise UserError(re.sub(r"^plan(?=[: ])", lambda _: where, str(error))) from None
    if target is not None:
        progress("writing the report", 0, None)
        PlanResults(describe_run(question, made), answer).write(target, render)
    return answer


def describe_run(question: Question, made: Provenance) -> dict[str, object]:
    """Describe a plan for ``run.json``: its question, and how it was made."""
    own = {"name": question.name, "seed": question.seed}
    return own | made.describe() | {"question": question.model_dump(mode="json")}


# ``moesim plan`` about training: the cheapest split that trains a model in so many days.


_EXACT = 17
"""Digits that leave a number as it is."""


def plan_training(
    question: Source,
    *,
    progress: Progress = show_nothing,
) -> TrainingAnswer:
    """Find the cheapest ways to train each model of a question in so many days.

    Args:
        question: as :func:`load_job` takes it.
        progress: called with how many models and numbers of GPUs are done, and the best so far.

    Raises:
        UserError: if the question is wrong, or none of its models fits.
    """
    if not isinstance(question, TrainingQuestion):
        question = load_job(question, (TrainingQuestion,))
    made = Provenance.begin()
    found = TrainingSearch(question, progress).run()
    rows = [_describe(question, one) for one in found.trained]
    candidates = pd.DataFrame(rows, columns=list(COLUMNS))
    currency = found.trained[0].plan.cluster.currency
    run = {
        "name": question.name,
        "seed": question.seed,
        "training_question": question.model_dump(mode="json", exclude_unset=True),
        "currency": currency,
        "ruled_out": {reason: count for reason, count in found.ruled_out.items() if count},
    }
    answer = TrainingAnswer(run, candidates, _write_scenario(question, found.trained))
    best = [found.trained[place] for place in answer.list_best().index]
    run["deployments"] = {
        one.plan.name: {} if one.target is None else one.target.describe() for one in best
    }
    notes = (note for one in best for note in list_training_notes(one.plan, one.target))
    run["notes"] = list(dict.fromkeys(map(str, notes)))
    findings = find_training_answer(answer, question.targets.days)
    absent = [f"{name} {why}." for name, why in found.absent.items()]
    verdict = make_verdict([*findings, *absent])
    return replace(answer, run=run | {"verdict": verdict} | made.describe())


def _describe(question: TrainingQuestion, one: Trained) -> dict[str, object]:
    plan, training = one.plan, question.training
    tokens = training.sequence_tokens * training.global_batch
    flops = trained_flops(plan.model, training.sequence_tokens) * training.global_batch
    rate = 1.0 / one.step.step_s / plan.spec.num_gpus
    return {
        "model": plan.name,
        "is_moe": plan.model.moe is not None,
        "cluster": plan.spec.cluster,
        "num_gpus": plan.spec.num_gpus,
        "split": plan.text(),
        "chunks": len(plan.places) // plan.num_stages,
        "micro_batch": plan.spec.micro_batch,
        "recompute": plan.spec.recompute,
        "tokens": one.tokens,
        "days": one.days,
        "days_low": one.days * one.band[0],
        "days_high": one.days * one.band[1],
        "cost": one.cost,
        "tokens_per_s_per_gpu": tokens * rate,
        "mfu": flops * rate / plan.placement.accelerator.flops_per_s(plan.spec.dtype),
        "bubble_share": one.step.bubble_share,
        "memory_bytes": one.memory.total_bytes,
        "keeps_target": one.days <= question.targets.days,
    }


def _write_scenario(question: TrainingQuestion, trained: list[Trained]) -> str | None:
    """Write a scenario with the cheapest split of each model that keeps the target."""
    best: dict[str, Trained] = {}
    for one in trained:
        if one.days <= question.targets.days:
            best.setdefault(one.deployment.name, one)
    if not best:
        return None
    training = question.training.model_dump(mode="json", exclude_none=True)
    quality = question.training.quality
    if quality is not None and quality.as_good_as not in best:
        entry = next(one for one in question.models if one.title == quality.as_good_as)
        if entry.model:
            training["quality"]["as_good_as"] = entry.model
        else:  # a counterpart that is not trained itself: the best one's tokens are what they are
            name, first = next(iter(best.items()))
            best = {name: first}
            del training["quality"]
            training["total_tokens"] = first.tokens
    table = {
        "name": f"{question.name}: recommended",
        "seed": question.seed,
        "training": training,
        "deployments": [_list_keys(question, one) for one in best.values()],
    }
    head = f"The cheapest split of each model that trains it in {question.targets.days:g} days."
    return toml_text(table, head, _EXACT)


def _list_keys(question: TrainingQuestion, one: Trained) -> dict[str, object]:
    """List the keys of a deployment, its model's path whole: the file lies in another folder."""
    keys: dict[str, Any] = one.deployment.model_dump(mode="json", exclude_defaults=True)
    for holder in (keys, keys.get("dense_of"), keys.get("moe_of")):
        named, changes = split_name((holder or {}).get("model", ""))
        path = question.folder / named
        if holder and path.suffix in (".toml", ".json") and path.is_file():
            holder["model"] = join_name(str(path.resolve()), changes)
    return keys
