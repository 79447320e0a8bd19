"""Search for each model's learning rate: short trainings at the same few rates, judged by their
held-out loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulator.base.formats import number
from simulator.base.progress import Progress
from simulator.config.model import ModelSpec
from simulator.runtime.recording.corpus import Corpus
from simulator.runtime.recording.models import Shape
from simulator.runtime.recording.training import HeldOut, Recipe, Training

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
"""Highest learning rates that are tried, a factor of two apart around the 3e-3 of models of this
size (a default of ours)."""
TUNING_SHARE = 0.25
"""Steps of a trial over those of the training that follows: four trials cost as much as one more
seed."""


@dataclass(frozen=True)
class Trial:
    """Short training of one model at one learning rate."""

    model: str
    learning_rate: float
    steps: int
    held_out_loss: float
    """Loss at its end, nats per byte."""


def try_rates(
    models: Mapping[str, ModelSpec],
    corpus: Corpus,
    held: HeldOut,
    shape: Shape,
    seed: int,
    recipe: Recipe,
    num_steps: int,
    tick: Progress,
) -> list[Trial]:
    """Train every model at each of :data:`RATES` from the same weights on the same batches.

    Args:
        recipe: all but the learning rate.
        num_steps: of each trial, the same for all models.
    """
    trials = []
    name = f"trying {len(RATES)} learning rates for each of {len(models)} models"
    tick(name, 0, len(RATES) * num_steps)
    for place, rate in enumerate(RATES):
        tried = replace(recipe, learning_rate=rate, num_evaluations=1)
        recipes = dict.fromkeys(models, tried)
        training = Training(dict(models), corpus, held, shape, seed, recipes)
        for done in training.run(dict.fromkeys(models, num_steps)):
            tick(name, place * num_steps + done, len(RATES) * num_steps)
        trials += [
            Trial(model, rate, num_steps, float(training.loss_Q[model].mean())) for model in models
        ]
    return trials


def choose_rates(trials: list[Trial]) -> dict[str, float]:
    """Choose the learning rate of each model that ended at its lowest held-out loss.

    >>> choose_rates([Trial("a", 0.1, 9, 2.0), Trial("a", 0.2, 9, 1.5), Trial("b", 0.1, 9, 3.0)])
    {'a': 0.2, 'b': 0.1}
    """
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.model not in best or trial.held_out_loss < best[trial.model].held_out_loss:
            best[trial.model] = trial
    return {model: trial.learning_rate for model, trial in best.items()}


def describe_search(trials: list[Trial]) -> str:
    """Describe how the learning rates were chosen, in a sentence or two."""
    chosen = choose_rates(trials)
    tried = sorted({trial.learning_rate for trial in trials})
    text = (
        f"Each model's highest learning rate is the one of {' and '.join(map(number, tried))} with "
        f"the lowest loss on the held-out text after {trials[0].steps:,} steps: "
        f"{', '.join(f'{number(rate)} for the {model}' for model, rate in chosen.items())}."
    )
    ends = [model for model, rate in chosen.items() if rate in (tried[0], tried[-1])]
    if ends:
        text += f" For the {' and the '.join(ends)} a rate beyond those may be better."
    return text
