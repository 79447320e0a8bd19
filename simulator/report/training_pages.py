"""The pages of trainings: a run, a plan, a step."""

from __future__ import annotations

import html
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from simulator.base.formats import TIMES, UNDEFINED, parameters, seconds
from simulator.report import style
from simulator.report.deployment_tables import describe_making
from simulator.report.front import Gauge, find_doubt, make_mark
from simulator.report.gallery import FigureCards, load_figures, pair_up
from simulator.report.marks import DOTTED, load_map, log_axis, whiskers
from simulator.report.rendering import (
    Block,
    Section,
    fold_json,
    render_blocks,
    show_table,
    show_tables,
)
from simulator.results.answer.parts import Band
from simulator.results.results_folder import Cell, TextTable, make_verdict
from simulator.results.training import TrainingResults, find_band, write_metric
from simulator.results.training_answer import TrainingAnswer, list_sizes

_LOSS = "Held-out loss (nats a byte)"
_MAP_HEIGHT = 230
_BY_TIME = (
    "Seconds of each model's own steps: steps so far times its median step. Solid: "
    "all models on the same tokens. Dashed: the dense ones anew, for as long as the mixture "
    "of experts computed. Means over seeds, whiskers from the lowest to the highest. Lower and "
    "further left is better."
)
_BY_TOKENS = (
    "All models see the same batches in the same order; "
    "solid and dashed as beside. Lower is better."
)
_MEANS = (
    "Means over seeds. Behind a loss: how far it lies above that of the mixture, with its 95 % "
    "band over seeds, or over sequences where there is one seed."
)
_STEPS = (
    "Forward, backward and optimizer of the median step; its 10th and 90th percentile behind it. "
    "Simulated where moesim calibrate cpu has timed this machine."
)
_TO_GO_ON = (
    "recommended.toml beside this page holds the cheapest split of each model; moesim run takes it "
    "as it is."
)
_MAPS = (
    "How often the mixture of experts chose each expert on held-out text, "
    "over the layer's mean; one scale for all maps."
)


def render_training(
    headline: str,
    findings: Sequence[str],
    outcomes: pd.DataFrame,
    trials: pd.DataFrame,
    curve: pd.DataFrame,
    loads: Mapping[str, NDArray[np.float64]],
    facts: Mapping[str, str],
) -> str:
    """The page as one HTML document that opens offline.

    Args:
        headline: the result in a sentence.
        findings: what else the numbers say, a sentence each.
        outcomes: a row a model: ``model``, ``num_parameters``, ``num_active_parameters``,
            ``learning_rate``, ``tokens``, ``seconds``, ``step_s``, ``step_band_s``,
            ``simulated_step_s``, ``held_out_loss``, ``above_moe``,
            ``same_time_tokens``, ``same_time_loss``, ``same_time_above_moe``, ``num_seeds``,
            ``num_reached``, ``seconds_to_moe_loss``, ``time_to_moe_loss``: fields of
            :class:`~simulator.runtime.recording.comparison.Outcome`.
        trials: a row a model and learning rate: ``model``, ``learning_rate``, ``steps``,
            ``held_out_loss``.
        curve: a row a run, seed, model and evaluation: ``run``, ``seed``, ``model``, ``tokens``,
            ``seconds``, ``held_out_loss``; in the first run all models saw the same tokens, in
            others they had the same time.
        loads: by domain, how often each expert was chosen over the layer's mean, ``[L, E]``.
        facts: how it was made, by name.
    """
    cards = FigureCards()
    by_time = _curves(curve, outcomes["model"], "seconds", "Own compute (s)")
    by_tokens = _curves(curve, outcomes["model"], "tokens", "Training tokens (bytes)")
    curves = [
        ("Held-out loss against time", _BY_TIME, by_time),
        ("Held-out loss against tokens", _BY_TOKENS, by_tokens),
    ]
    maps = {
        html.escape(name, quote=False): load_map(load, "Expert", "choices", _MAP_HEIGHT)
        for name, load in loads.items()
    }
    chosen = (
        f"Held-out loss after {int(trials['steps'].iloc[0]):,} steps at each highest learning "
        "rate, the same for all models; the lowest of a model is its own."
    )
    learned = pair_up(cards, curves)
    load = cards.card("Expert load by layer and domain", _MAPS, maps, "half")
    rows = outcomes.to_dict("records")
    sections = [
        Section("How fast they learned", [Block(cards=learned)]),
        Section("At the end of the run", [show_table(_list_outcomes(rows))], _MEANS),
        Section("A step, measured and simulated", [show_table(_list_steps(rows))], _STEPS),
        Section("How learning rates were chosen", [show_table(_list_trials(trials))], chosen),
        Section("What the experts did", [Block(cards=[load])]),
        Section("How it was made", [Block(facts=facts)]),
    ]
    verdict = make_verdict([headline, *findings])
    return render_blocks("Recorded by training", cards, verdict, sections)


def _list_outcomes(outcomes: Sequence[Mapping[Hashable, Any]]) -> TextTable:
    titles = ("Model", "Parameters", "Active", "Own time for the same tokens", "Held-out loss")
    more = ("Tokens in the same time", "Held-out loss in the same time")
    rows: list[list[str | Cell]] = [[*titles, *more, "Time to the mixture's loss"]]
    first_s = outcomes[0]["seconds"]
    for row in outcomes:
        reached = f"in {row['num_reached']} of {row['num_seeds']} seeds"
        at_loss = Cell(reached if row["num_reached"] else "not reached")
        if row["seconds_to_moe_loss"] is not None and math.isfinite(row["seconds_to_moe_loss"]):
            band = row["time_to_moe_loss"]
            has_band = band is not None and band["low"] is not None
            at_loss = Cell(
                seconds(row["seconds_to_moe_loss"]),
                f"{band['low']:.2f} to {band['high']:.2f} times the mixture's" if has_band else "",
            )
        ratio = f" ({row['seconds'] / first_s:.2f}{TIMES})" if first_s else ""
        rows.append(
            [
                row["model"],
                *(parameters(row[key]) for key in ("num_parameters", "num_active_parameters")),
                seconds(row["seconds"]) + ratio,
                Cell(f"{row['held_out_loss']:.3f}", _write_margin(row["above_moe"])),
                f"{row['same_time_tokens']:,}",
                Cell(f"{row['same_time_loss']:.3f}", _write_margin(row["same_time_above_moe"])),
                at_loss,
            ]
        )
    return TextTable("The models at the end of the run", rows)


def _write_margin(above: Mapping[str, float]) -> str:
    """Write how far a loss lies above the mixture's, with its band; empty without one."""
    half_width = above["half_width"]
    return f"{above['loss']:+.3f} ± {half_width:.3f}" if half_width else ""


def _list_steps(outcomes: Sequence[Mapping[Hashable, Any]]) -> TextTable:
    rows: list[list[str | Cell]] = [["Model", "Measured", "Simulated", "Measured over simulated"]]
    for row in outcomes:
        step_s, simulated_s = row["step_s"], row["simulated_step_s"]
        simulated = [UNDEFINED, UNDEFINED]
        if simulated_s is not None and math.isfinite(simulated_s):
            simulated = [seconds(simulated_s), f"{step_s / simulated_s:.2f}"]
        band = " to ".join(map(seconds, row["step_band_s"]))
        rows.append([row["model"], Cell(seconds(step_s), band), *simulated])
    return TextTable("Steps, measured and simulated", rows)


def _list_trials(trials: pd.DataFrame) -> TextTable:
    table = trials.pivot_table("held_out_loss", "learning_rate", "model", sort=False)
    rows: list[list[str | Cell]] = [["Learning rate", *map(str, table.columns)]]
    for rate, losses in table.iterrows():
        cells = (
            Cell(f"{loss:.3f}", is_best=loss == table[name].min()) for name, loss in losses.items()
        )
        rows.append([f"{rate:g}", *cells])
    return TextTable("Learning rates tried", rows)


def _curves(curve: pd.DataFrame, models: pd.Series, column: str, title: str) -> go.Figure:
    """The loss of every model, mean over seeds, but for the untrained one's, which would flatten
    the rest; whiskers from the lowest seed to the highest.
    """
    drawn = style.figure(title, _LOSS, height=340)
    trained = curve[curve["tokens"] > 0]
    for dash, (run, of_run) in zip(
        cycle(style.DASHES), trained.groupby("run", sort=False), strict=False
    ):
        for colour, name in zip(cycle(style.DEPLOYMENT_COLOURS), models, strict=False):
            own = of_run[of_run["model"] == name].groupby("tokens")
            loss = own["held_out_loss"]
            if not len(loss):
                continue
            low, mean, high = (loss.agg(how).to_numpy(float) for how in ("min", "mean", "max"))
            drawn.add_scatter(
                x=own[column].mean().to_numpy(float),
                y=mean,
                error_y=whiskers(mean, low, high, thickness=1.2, width=3),
                name=html.escape(name, quote=False),
                line={"color": colour, "dash": dash, "width": 2},
                mode="lines+markers",
                hovertemplate=f"%{{y:.3f}} nats at %{{x:,.4~g}}, {run}",
            )
    return drawn


_CAPTION = (
    "The cheapest split of each model on each number of GPUs; whiskers are 80 % bands. Lower and "
    "further left is better; the dotted line is the target."
)


def render_training_plan(answer: TrainingAnswer) -> str:
    """The page as one HTML document that opens offline."""
    cards, run = FigureCards(), answer.run
    question, name = run["training_question"], str(run["name"])
    days, training = question["targets"]["days"], question["training"]
    lines = _line_up(answer)
    drawn = _draw(lines, days, run["currency"])
    gauges = list(_gauge_answer(answer, days))
    best = answer.list_best().iloc[0]
    machines = f"{int(best['num_gpus']):,} {TIMES} {best['cluster']}"
    ruled_out = sorted(run["ruled_out"].items(), key=lambda item: -item[1])
    reasons = [f"{count:,}: {reason}" for reason, count in ruled_out]
    recommended = Block(folded=answer.recommended or "", title="recommended.toml")
    making = {"Command": run.get("command")} | describe_making(run)
    sections = [
        Section(
            "Days and cost", [Block(cards=[cards.card("Cost against days", _CAPTION, {"": drawn})])]
        ),
        *show_tables(answer.list_tables()),
        Section("Ruled out", [Block(sentences=reasons, look="")] if reasons else []),
        Section("To go on", [recommended] if answer.recommended else [], _TO_GO_ON),
        Section("What this rests on", [Block(sentences=run.get("notes", []), look="warnings")]),
        Section("How this was made", [Block(facts=making), fold_json("The question", question)]),
    ]
    setting = _describe_training(training)
    if "quality" in training:
        del setting["Tokens in all"]  # each model has its own
    return render_blocks(
        name,
        cards,
        answer.verdict,
        sections,
        eyebrow=f"{name} · plan of training",
        setting=setting,
        shown=answer,
        answers={
            "Machines": Cell(machines, f"{best['model']}: {best['split']}"),
            "As good as": _describe_quality(training, best, answer.facts(best["model"])),
            "Largest doubt": find_doubt(gauges),
        },
        gauges=gauges,
    )


Lines: TypeAlias = Mapping[tuple[str, str], tuple[pd.DataFrame, dict[str, Any]]]
"""Cheapest splits on each number of GPUs, and their line in figures, by model and cluster."""


def _line_up(answer: TrainingAnswer) -> Lines:
    found = list_sizes(answer.candidates).groupby(["model", "cluster"], sort=False)
    dashes = dict(
        zip(dict.fromkeys(answer.candidates["cluster"]), cycle(style.DASHES), strict=False)
    )
    lines = style.lines(answer)
    return {
        (str(model), str(cluster)): (
            own.sort_values("days"),
            lines[str(model)] | {"dash": dashes[cluster]},
        )
        for (model, cluster), own in found
    }


def _describe_quality(
    training: Mapping[str, Any], best: pd.Series, facts: Mapping[str, Any]
) -> Cell | None:
    """Tell what all are trained to be as good as; ``None`` where all are trained on as much."""
    if "quality" not in training:
        return None
    reference, total = training["quality"]["as_good_as"], parameters(training["total_tokens"])
    needs = f"{parameters(best['tokens'])} tokens of {best['model']}, by a scaling law"
    if facts.get("outside"):
        needs += " beyond what it was fitted on"
    return Cell(f"{reference} after {total} tokens", needs)


def _gauge_answer(answer: TrainingAnswer, days: float) -> Iterator[Gauge]:
    """Days, cost and tokens of the best split of each model."""
    best, swatches = answer.list_best().head(_MOST_MARKS), style.swatches(answer)
    for key, title in _SHOWN_OF_PLAN.items():
        write = partial(write_metric, key, currency=answer.run["currency"])
        marks = []
        for row in best.to_dict("records"):
            ends = (row[key] * row[f"days_{end}"] / row["days"] for end in ("low", "high"))
            band = None if key == "tokens" else Band(*ends)
            name = f"{row['model']}, {int(row['num_gpus']):,} GPUs"
            marks.append(make_mark(name, swatches[row["model"]], row[key], band, write))
        if key == "days":
            yield Gauge(title, marks, days, f"at most {write(days)}")
        else:
            yield Gauge(title, marks)


def _describe_training(training: Mapping[str, Any]) -> dict[str, object]:
    total = training.get("total_tokens")
    return {
        "Sequence": f"{training['sequence_tokens']:,} tokens",
        "Batch": f"{training['global_batch']:,} sequences",
        "Tokens in all": parameters(float(total)) if total else None,
    }


def _draw(lines: Lines, days: float, currency: str) -> go.Figure:
    """Draw a line for each model and kind of machine, over the numbers of GPUs."""
    best = pd.concat([own for own, _ in lines.values()])
    ends = [best["days_low"].min(), best["days_high"].max(), days]
    drawn = style.figure(
        "Days until all tokens are trained on (days)",
        f"Cost of the training ({currency})",
        420,
        xaxis=log_axis(min(ends) / 1.1, max(ends) * 1.1),
        yaxis=log_axis(float(best["cost"].min()) / 1.3, float(best["cost"].max()) * 1.3)
        if best["cost"].min() > 0
        else {},
    )
    is_one = len(set(best["cluster"])) == 1
    for (model, cluster), (own, line) in lines.items():
        label = html.escape(model if is_one else f"{model} on {cluster}", quote=False)
        drawn.add_scatter(
            x=own["days"].to_numpy(float),
            y=own["cost"].to_numpy(float),
            error_x=whiskers(own["days"], own["days_low"], own["days_high"], thickness=1, width=3),
            name=label,
            line=line,
            mode="lines+markers",
            customdata=[
                [int(row["num_gpus"]), str(row["split"])] for row in own.to_dict("records")
            ],
            hovertemplate="%{x:,.3~g} days, %{y:,.0f} on %{customdata[0]} GPUs, %{customdata[1]}"
            f"<extra>{label}</extra>",
        )
    drawn.add_vline(x=days, line=DOTTED)
    return drawn


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


def render_training_step(results: TrainingResults) -> str:
    """The page as one HTML document that opens offline."""
    cards, run, name = FigureCards(), results.run, str(results.run["name"])
    gauges = list(_draw_gauges(results))
    facts = [results.facts(name) for name in results.deployments]
    machines = {f"{one['num_gpus']:,} {TIMES} {one['accelerator']}": None for one in facts}
    rows: list[list[str | Cell]] = [["Deployment", *results.deployments]]
    rows += [
        [title, *(_write_fact(key, one.get(key)) for one in facts)] for title, key in _FACTS.items()
    ]
    made_of = Block(table=TextTable("Models and machines", rows), look="facts")
    making = {"Command": run.get("command")} | describe_making(run)
    drawn = cards.draw(load_figures("report.training_figures"), results)
    sections = [
        *show_tables(results.list_tables()),
        *(Section(title, [Block(cards=shown)]) for title, shown in drawn.items()),
        Section("Models and machines", [made_of]),
        Section("What this rests on", [Block(sentences=run["notes"], look="warnings")]),
        Section(
            "How this was made", [Block(facts=making), fold_json("The scenario", run["scenario"])]
        ),
    ]
    return render_blocks(
        name,
        cards,
        results.verdict,
        sections,
        eyebrow=f"{name} · training",
        setting=_describe_training(run["training"]),
        shown=results,
        answers={
            "Machines": Cell(", ".join(machines), "for each" if len(facts) > len(machines) else ""),
            "Largest doubt": find_doubt(gauges),
        },
        gauges=gauges,
    )


_SHOWN = {
    "tokens_per_s_per_gpu": "Tokens a second on each GPU",
    "days": "Days of training",
    "cost": "Cost of the training",
}


def _draw_gauges(results: TrainingResults) -> Iterator[Gauge]:
    """Speed, days and cost of each deployment."""
    swatches, summary = style.swatches(results), results.summary.set_index("deployment")
    for key, title in _SHOWN.items():
        marks = []
        for name, value in summary[key].items() if key in summary else ():
            facts = results.facts(str(name))
            if math.isfinite(value):
                ends = find_band(key, value, facts)
                band = None if ends is None else Band(*ends)
                write = partial(write_metric, key, currency=facts["currency"])
                marks.append(make_mark(str(name), swatches[str(name)], value, band, write))
        yield Gauge(title, marks[:_MOST_MARKS])


_SHOWN_OF_PLAN = {
    "days": _SHOWN["days"],
    "cost": _SHOWN["cost"],
    "tokens": "Tokens until all are as good",
}
_MOST_MARKS = 4
"""Deployments on the first screen."""


def _write_fact(key: str, value: object) -> str:
    if "parameters" in key and isinstance(value, int | float):
        return parameters(float(value))
    return f"{value:,}" if isinstance(value, int) else str(value)
