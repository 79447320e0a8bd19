"""The report page of ``moesim execute``: what the machine did beside what was predicted, with the
finding first.
"""

from __future__ import annotations

from typing import Any

from simulator.report import tables
from simulator.report.cards import Cards, drawn_sections
from simulator.report.document import described, document, facts_list, in_sections
from simulator.report.execution_figures import figures
from simulator.report.execution_numbers import tidy
from simulator.report.execution_tables import (
    assumed,
    calibration_warning,
    faults_table,
    numbers_table,
)
from simulator.report.execution_verdict import verdict
from simulator.report.markup import Markup, join, tag
from simulator.results.executed import Executed, describe_load

_NUMBERS = (
    "The numbers of summary.csv: medians over measured steps, and the largest difference between "
    "a hidden value of the distributed run and of the same step in one process."
)
_FAULTS = (
    "Shards that were lost while they ran, and how long it took until all were ready to "
    "compute the step again."
)
_MODELS = "Parameters are counted from each model's configuration, before pruning."
_UNUSED = ("kv_tokens", "memory", "scheduling", "balancing", "topology", "replicas", "num_gpus")
"""Facts that an execution makes no use of: its steps are given, and its ranks are processes."""


def render(executed: Executed) -> str:
    """The page as one HTML document."""
    executed = tidy(executed)
    cards = Cards()
    sections = drawn_sections(cards, figures(), executed)
    if (faults := faults_table(executed)) is not None:
        # Before the steps in which they show.
        place = next(
            (i for i, (title, _) in enumerate(sections) if title == "Step by step"), len(sections)
        )
        sections.insert(place, ("Faults", described(_FAULTS, faults)))
    sections += [
        ("All numbers", described(_NUMBERS, numbers_table(executed))),
        (
            "Models and deployments",
            described(
                _MODELS, tables.deployments_table(executed, left_out=_UNUSED, with_published=False)
            ),
        ),
        ("What the prediction rests on", assumed(executed)),
        ("How this run was made", _provenance(executed.run)),
    ]
    name = str(executed.run.get("name") or "execution")
    return document(name, in_sections(_hero(executed, name), sections), cards.payload)


def _hero(executed: Executed, name: str) -> Markup:
    found = verdict(executed)
    warnings = [calibration_warning(executed.run), describe_load(executed)]
    return tag(
        "header",
        tag("p", name, class_="eyebrow"),
        tag("h1", tables.marked(executed, found.headline)),
        tag(
            "ul",
            *(tag("li", tables.marked(executed, reason)) for reason in found.reasons),
            class_="reasons",
        ),
        facts_list(_setting(executed.run), "setting"),
        *(tag("p", warning, class_="notice") for warning in warnings if warning),
    )


def _setting(run: dict[str, Any]) -> dict[str, str | None]:
    """What was run, as short facts."""
    execution = (run.get("scenario") or {}).get("execution") or {}
    prompts, sequences = execution.get("prompts"), execution.get("sequences")
    warm_up = f" after {execution['warm_up']:,} of warm-up" if execution.get("warm_up") else ""
    return {
        "Machine": run.get("machine"),
        "Ray": run.get("nodes"),
        "Prompt step": f"{prompts:,} prompts of {execution.get('prompt_tokens'):,} tokens"
        if prompts
        else None,
        "Decode step": (
            f"{sequences:,} sequences, {execution.get('context_tokens'):,} tokens in each cache"
        )
        if sequences
        else None,
        "Steps of each kind": f"{execution['steps']:,}{warm_up}"
        if execution.get("steps")
        else None,
    }


def _provenance(run: dict[str, Any]) -> Markup:
    execution = (run.get("scenario") or {}).get("execution") or {}
    rows = {
        "Command": run.get("command"),
        "Seed": run.get("seed"),
        "Machine": run.get("machine"),
        "Ray": run.get("nodes"),
        "Transport": (execution.get("transport") or {}).get("kind"),
        **tables.made_of(run),
    }
    return join([facts_list(rows), tables.scenario(run)])
