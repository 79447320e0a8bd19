"""``moesim trace record train``: train a mixture of experts beside dense twins over several seeds,
and record what it chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simulator import __version__
from simulator.base.errors import UserError
from simulator.base.machine import name_machine
from simulator.base.progress import Progress
from simulator.base.spreadsheet import write_csv
from simulator.commands.record_trace import check_tokens, describe
from simulator.config.host import HostRates
from simulator.config.model import ModelSpec
from simulator.config.training import TrainingDeployment, TrainingSpec
from simulator.deployment.training.plan import plan_model
from simulator.engine.training import run_training_step
from simulator.runtime import require
from simulator.runtime.recording.comparison import (
    SAME_TIME,
    SAME_TOKENS,
    Outcome,
    compare_models,
    headline,
    list_findings,
)
from simulator.runtime.recording.corpus import Corpus, read_corpus
from simulator.runtime.recording.models import MOE, Shape, model_toml, three_models
from simulator.runtime.recording.trace_file import Recording, write_recording
from simulator.step.training import price_micro_batch

if TYPE_CHECKING:  # they import torch and Ray
    from simulator.runtime.recording.training import HeldOut, Recipe, Training, Trial


_MIN_STEPS = 20
_LONGEST_MINUTES = 24 * 60.0
_MOST_SEEDS = 100


@dataclass(frozen=True)
class TrainedRecording:
    """A mixture of experts that was trained here, what it chose, and how it compares with its dense
    twins.
    """

    recording: Recording
    """Choices of the first seed's mixture."""
    models: dict[str, ModelSpec]
    trials: list[Trial]
    """Trainings that the learning rates were chosen by."""
    curve: pd.DataFrame
    """Columns ``run``, ``seed``, ``model``, ``step``, ``tokens``, ``seconds``, ``wall_seconds``,
    ``cpu_seconds``, ``train_loss``, ``held_out_loss``; a row a run, seed, model and evaluation.
    ``seconds`` are steps times the model's median step in the first run: every step does the same
    work, so what a step takes longer is other programs'. ``wall_seconds`` is the sum as it was,
    ``cpu_seconds`` the processor time."""
    outcomes: list[Outcome]
    training: Training
    """First seed's training of all models."""

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        return headline(self.outcomes)

    @property
    def findings(self) -> list[str]:
        """Further findings of the comparison, a sentence each."""
        from simulator.runtime.recording.training import describe_search

        return [*list_findings(self.outcomes), describe_search(self.trials)]

    def summary(self) -> dict[str, object]:
        """Numbers that ``--json`` prints."""
        return {
            "headline": self.headline,
            "findings": self.findings,
            "models": [dataclasses.asdict(row) for row in self.outcomes],
            "learning_rates": [dataclasses.asdict(trial) for trial in self.trials],
            **describe(self.recording),
        }


@dataclass(frozen=True)
class _Trainer:
    """Models on one text, trained from several seeds."""

    corpus: Corpus
    held: HeldOut
    shape: Shape
    seeds: range
    recipes: dict[str, Recipe]

    def train(
        self, models: dict[str, ModelSpec], steps: dict[str, int], label: str, tick: Progress
    ) -> list[Training]:
        """Train models from each seed, for a number of steps each."""
        from simulator.runtime.recording.training import Training

        num_rounds = max(steps.values())
        tick(label, 0, num_rounds * len(self.seeds))
        trainings = []
        for place, seed in enumerate(self.seeds):
            training = Training(models, self.corpus, self.held, self.shape, seed, self.recipes)
            for done in training.run(steps):
                tick(label, place * num_rounds + done, num_rounds * len(self.seeds))
            trainings.append(training)
        return trainings


def train_and_record(
    text: Path | None,
    minutes: float,
    steps: int | None,
    tokens: int,
    seeds: range,
    tick: Progress,
    shape: Shape | None = None,
    recipe: Recipe | None = None,
) -> TrainedRecording:
    """Train a mixture of experts and its dense twins side by side, and record the mixture's choices
    on held-out text.

    Each model's learning rate is searched for first. Then come two runs from each seed: all models
    on the same tokens, and the dense ones anew for as long as the mixture computed.

    Args:
        text: a folder of text files; ``None`` for Python's standard library.
        minutes: all of it should take, where ``steps`` is ``None``; the number of steps is then
            chosen by timing a few.
        steps: of every model in the first run.
        tokens: held-out tokens to record (and to measure the loss on).
        seeds: of weights and batches; the first one also chooses the text that is held out.

    Raises:
        UserError: if PyTorch is missing, an argument makes no sense, or there is too little text.
    """
    if steps is not None and steps < 1:
        raise UserError(f"--steps {steps}: must be at least 1")
    if not 0 < minutes <= _LONGEST_MINUTES:
        raise UserError(f"--minutes {minutes:g}: must be above 0, and a day at most")
    if not 1 <= len(seeds) <= _MOST_SEEDS:
        raise UserError(f"--seeds {len(seeds)}: must be from 1 to {_MOST_SEEDS}")
    check_tokens(tokens)
    require("torch", "training a model")
    from simulator.runtime.recording.training import (
        MIXTURE_NAME,
        TUNING_SHARE,
        Recipe,
        Training,
        choose_held_out,
        choose_rates,
        describe_computation,
        route,
        try_rates,
    )

    shape, recipe = shape or Shape(), recipe or Recipe()
    corpus = read_corpus(text, seeds[0], shape.context)
    held = choose_held_out(corpus, shape.context, tokens)
    models = three_models(shape, MIXTURE_NAME)
    if steps is None:
        tick("timing the first steps", 0, None)
        timed = Training(models, corpus, held, shape, seeds[0], dict.fromkeys(models, recipe))
        steps = _count_steps(minutes * 60, *timed.time_a_step(), recipe.num_evaluations, len(seeds))
    tried = max(1, round(TUNING_SHARE * steps))
    trials = try_rates(models, corpus, held, shape, seeds[0], recipe, tried, tick)
    rates = choose_rates(trials)
    recipes = {name: replace(recipe, learning_rate=rate) for name, rate in rates.items()}
    trainer = _Trainer(corpus, held, shape, seeds, recipes)
    times = "" if len(seeds) == 1 else f", {len(seeds)} times"
    first = trainer.train(
        models,
        dict.fromkeys(models, steps),
        f"training {len(models)} models on the same tokens{times}",
        tick,
    )
    # The dense models again, for as long as the mixture computed: cut off early, their learning
    # rates would not have fallen.
    # Every step of a model does the same work, so those that took longer were slowed down by other
    # programs: the median counts.
    steps_s = {name: np.concatenate([one.step_s[name] for one in first]) for name in models}
    step_s = {name: float(np.median(every_s)) for name, every_s in steps_s.items()}
    dense = {
        name: max(1, round(steps * step_s[MOE] / step_s[name])) for name in models if name != MOE
    }
    again = trainer.train(
        {name: models[name] for name in dense},
        dense,
        f"training the dense ones for the same time{times}",
        tick,
    )
    runs = {SAME_TOKENS: first, SAME_TIME: again}
    curve = pd.concat(
        [
            _make_curve(training, run, seed, step_s)
            for run, trainings in runs.items()
            for seed, training in zip(seeds, trainings, strict=True)
        ],
        ignore_index=True,
    )
    losses = {run: [one.loss_Q for one in trainings] for run, trainings in runs.items()}
    simulated_s = simulate_steps(models, shape, seeds[0])
    rows = compare_models(models, rates, curve, losses, steps_s, simulated_s)
    moe = rows[0]
    recording = Recording(
        topk_ids_LTK=route(first[0].transformer(MOE), held.tokens_QS),
        seq_lens_Q=held.lengths_Q,
        domain_Q=held.domain_Q,
        num_experts=shape.num_experts,
        provenance=(
            f"moesim {__version__} trace record train --steps {steps} --tokens {tokens} "
            f"--seed {seeds[0]} --seeds {len(seeds)}; {describe_computation()}. A byte-level "
            f"mixture of experts ({moe.num_parameters:,} parameters, {moe.num_active_parameters:,} "
            f"active; {shape.num_layers} layers, {shape.num_experts} experts, top-{shape.top_k}) "
            f"trained on {moe.tokens:,} tokens of {corpus.description} "
            f"({corpus.num_training_bytes:,} bytes, {len(corpus.domains)} domains) at a highest "
            f"learning rate of {rates[MOE]:g}; held-out loss "
            f"{float(first[0].loss_Q[MOE].mean()):.3f} nats a byte. "
            "Recorded on files that were held out of training, every byte a token."
        ),
    )
    return TrainedRecording(recording, models, trials, curve, rows, first[0])


def _count_steps(
    limit_s: float,
    step_s: dict[str, float],
    evaluation_s: float,
    num_evaluations: int,
    num_seeds: int,
) -> int:
    """Steps of the first run that leave time for the search of learning rates, and for the second
    run, in which each dense model computes as long as the mixture.
    """
    from simulator.runtime.recording.training import RATES, TUNING_SHARE

    again_s = (len(step_s) - 1) * step_s[MOE]
    round_s = (len(RATES) * TUNING_SHARE + num_seeds) * sum(step_s.values()) + num_seeds * again_s
    runs = num_seeds * (1 + (len(step_s) - 1) / len(step_s))
    evaluated_s = (runs * (num_evaluations + 1) + 2 * len(RATES)) * evaluation_s
    return max(_MIN_STEPS, round((limit_s - evaluated_s) / round_s))


def _make_curve(training: Training, run: str, seed: int, step_s: dict[str, float]) -> pd.DataFrame:
    curve = pd.DataFrame([dataclasses.asdict(point) for point in training.curve])
    curve.insert(0, "run", run)
    curve.insert(1, "seed", seed)
    curve.insert(5, "seconds", curve["step"] * curve["model"].map(step_s))
    return curve


def write_training(made: TrainedRecording, target: Path, partial: dict[str, Path]) -> None:
    """Write a trained model's files.

    Args:
        target: where the recording will be in the end, which the model file names.
        partial: where to write, by what: ``recording``, ``curve``, ``page``, ``model``, and
            ``weights`` where they are wanted.
    """
    from simulator.report.training_pages import render_training as render

    write_recording(made.recording, partial["recording"])
    write_csv(made.curve, partial["curve"], float_format="%.6g")
    facts = {"Provenance": made.recording.provenance, "Recording": target.name}
    loads = {"all domains": made.recording.load()} | {
        name: made.recording.load(name) for name in made.recording.domains
    }
    rows = pd.DataFrame([dataclasses.asdict(row) for row in made.outcomes])
    trials = pd.DataFrame([dataclasses.asdict(trial) for trial in made.trials])
    page = render(made.headline, made.findings, rows, trials, made.curve, loads, facts)
    partial["page"].write_text(page, encoding="utf-8")
    title = f"Mixture of experts of {target.stem}"
    written = model_toml(
        made.models[MOE],
        title,
        target.name,
        f"trained and recorded by moesim; see provenance in {target.name}",
    )
    partial["model"].write_text(written, encoding="utf-8")
    if "weights" in partial:
        require("safetensors", "writing weights")
        from simulator.runtime.layers.weights import save_weights

        save_weights(made.training.transformer(MOE).named_weights(), partial["weights"])


_CLUSTER = "this-machine"


def simulate_steps(models: Mapping[str, ModelSpec], shape: Shape, seed: int) -> dict[str, float]:
    """Simulate a step of each model on one rank, with experts that are used evenly, as the loss for
    balance has it.

    Returns:
        Seconds by model; empty where the calibration is of another machine, or has no training.
    """
    training = TrainingSpec(sequence_tokens=shape.context, global_batch=shape.batch)
    found = {}
    for name, model in models.items():
        spec = TrainingDeployment(
            name=name,
            model=model.name,
            cluster=_CLUSTER,
            num_gpus=1,
            micro_batch=shape.batch,
            dtype="fp32",
            dispatch_dtype="fp32",
            dispatch={"kind": "per_rank"},
            zero=0,
            overlap_gradients=False,
            routing={"kind": "uniform"} if model.moe is not None else None,
        )
        try:
            plan = plan_model(spec, model, training, seed, "trace record train", Path())
        except UserError:
            return {}
        rates = plan.placement.calibration
        if not isinstance(rates, HostRates) or rates.host.machine != name_machine():
            return {}
        found[name] = run_training_step(plan, price_micro_batch(plan)).step_s
    return found
