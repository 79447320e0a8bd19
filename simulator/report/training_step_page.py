"""The page of a simulated training."""

from __future__ import annotations

from simulator.report import style
from simulator.report.deployment_tables import (
    describe_making,
    name_deployments,
    split_at_rumours,
)
from simulator.report.figure_cards import FigureCards
from simulator.report.gallery import load_figures
from simulator.report.rendering import render_page
from simulator.results.formats import parameters
from simulator.results.training import METRICS, TrainingResults
from simulator.results.training_text import write_band, write_metric

_FACTS = {
    "Model": "model_title",
    "Parameters in all": "total_parameters",
    "Parameters active per token": "active_parameters",
    "Cluster": "cluster_title",
    "Accelerator": "accelerator",
    "Accelerators": "num_gpus",
    "Split": "layout",
    "Pipelining": "pipelining",
    "Micro-batches of a rank": "num_micro_batches",
    "Matrices compute in": "dtype",
    "Recomputed": "recompute",
    "ZeRO stage": "zero",
}


def render(results: TrainingResults) -> str:
    """The page as one HTML document that opens offline."""
    cards, run = FigureCards(), results.run
    sections = cards.draw(load_figures("report.training_figures"), results)
    facts = [style.facts(results, name) for name in results.deployments]
    return render_page(
        "training_step.html",
        str(run["name"]),
        cards,
        headline=split_at_rumours(run["verdict"]["headline"], results),
        reasons=[split_at_rumours(one, results) for one in run["verdict"]["reasons"]],
        training=run["training"],
        names=name_deployments(results),
        metrics=_list_metrics(results),
        facts={
            title: [_write_fact(key, one.get(key)) for one in facts]
            for title, key in _FACTS.items()
        },
        sections=sections,
        notes=run["notes"],
        scenario=run["scenario"],
        making={"Command": run.get("command")} | describe_making(run),
    )


def _list_metrics(results: TrainingResults) -> list[dict[str, object]]:
    """Rows of the table of metrics that some deployment has."""
    rows: list[dict[str, object]] = []
    for name, described in METRICS.items():
        values = results.summary[name].astype(float).to_list()
        if all(value != value for value in values):
            continue
        each = [style.facts(results, one) for one in results.deployments]
        cells = [
            (value, write_metric(name, value, str(one["currency"])), write_band(name, value, one))
            for value, one in zip(values, each, strict=True)
        ]
        rows.append(
            {
                "key": name,
                "label": described.label,
                "hint": described.definition,
                "cells": cells,
            }
        )
    return rows


def _write_fact(key: str, value: object) -> str:
    if "parameters" in key and isinstance(value, int | float):
        return parameters(float(value))
    return f"{value:,}" if isinstance(value, int) else str(value)
