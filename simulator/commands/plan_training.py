"""``moesim plan`` about training: the cheapest split that trains a model in so many days."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from simulator.base.progress import Progress, show_nothing
from simulator.base.writing import toml_text
from simulator.config.named import join_name, split_name
from simulator.config.training_question import TrainingQuestion
from simulator.planner.training import Trained, search_training
from simulator.results.provenance import Provenance
from simulator.results.results_folder import make_verdict
from simulator.results.training_answer import COLUMNS, TrainingAnswer, find_training_answer
from simulator.scenario.jobs import Source, load_job
from simulator.work.flops import trained_flops

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
    found = search_training(question, progress)
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
    findings = find_training_answer(candidates, answer, question.targets.days, currency)
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
