"""Training of small byte-level language models side by side: the same batches in the same order,
each model on its own clock.

The models take turns, so that all share the machine's conditions, and the order changes from step
to step. Everything else is the same for all: seed, AdamW (Loshchilov and Hutter, arXiv:1711.05101),
a learning rate that rises over a few steps and falls like a cosine (arXiv:1608.03983), and clipped
gradients (Pascanu et al., arXiv:1211.5063). The mixture of experts has an auxiliary loss for
balance besides: Switch Transformer's (Fedus et al., arXiv:2101.03961, equations 4 to 6), with top-k
as in GShard (arXiv:2006.16668). Reported losses are cross-entropies, in nats per byte.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from simulator.base.formats import number
from simulator.base.progress import Progress
from simulator.config.model import ModelSpec
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.router import Router
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import SeededWeights
from simulator.runtime.recording.corpus import Bytes, Corpus
from simulator.runtime.recording.models import Shape

MIXTURE_NAME = "byte-moe"
_WARM_UP_ROUNDS = 2
"""Rounds before timing, which load kernels and fill caches."""
_EVALUATION_SEQUENCES = 32
"""Sequences that are evaluated at once."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a model; the learning rate is tuned, the others are those of all."""

    learning_rate: float = 3e-3
    """Highest learning rate."""
    last_share: float = 0.1
    """Learning rate of the last step over the highest one."""
    warm_up_share: float = 0.05
    """Share of the steps in which the learning rate rises."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    """Weight decay of matrices."""
    gradient_norm: float = 1.0
    """Norm that gradients are clipped to."""
    balance: float = 0.01
    """Weight of the auxiliary loss, as in Switch Transformer."""
    num_evaluations: int = 12
    """Evaluations, evenly over the steps, besides the one before the first."""

    def rate(self, step: int, num_steps: int) -> float:
        """Learning rate of a step, counted from 0.

        >>> [round(Recipe().rate(step, 100), 5) for step in (0, 4, 5, 99)]
        [0.0006, 0.003, 0.003, 0.0003]
        """
        rising = max(1, round(self.warm_up_share * num_steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        along = (step - rising) / max(1, num_steps - 1 - rising)
        falling = (1 + math.cos(math.pi * along)) / 2
        return self.learning_rate * (self.last_share + (1 - self.last_share) * falling)


@dataclass(frozen=True)
class HeldOut:
    """Sequences that no model is trained on: for measuring the loss and recording the routing."""

    tokens_QS: NDArray[np.uint8]
    """Bytes of each sequence; ``S`` is one more than the context: the last byte is only
    predicted."""
    domain_Q: list[str]

    @property
    def lengths_Q(self) -> NDArray[np.int64]:
        """Tokens of each sequence that are read, and routed."""
        return np.full(len(self.tokens_QS), self.tokens_QS.shape[1] - 1, dtype=np.int64)


@dataclass(frozen=True)
class Point:
    """One model after some steps: a row of the curve."""

    model: str
    step: int
    tokens: int
    wall_seconds: float
    """Wall seconds of this model's own steps (forward, backward and optimiser) without
    evaluations."""
    cpu_seconds: float
    """Processor seconds of the same steps, over all threads: to be compared where other programs
    used the cores meanwhile."""
    train_loss: float
    """Mean training loss over the steps since the last point; NaN before the first step."""
    held_out_loss: float


@dataclass
class _Trained:
    """Model in training."""

    transformer: Transformer
    recipe: Recipe
    optimiser: torch.optim.Optimizer
    batches: np.random.Generator
    """Random stream of batches, the same for each model."""
    routed: list[tuple[Router, Tensor]] = field(default_factory=list)
    """Routers of the last forward pass, with their inputs."""
    losses: list[float] = field(default_factory=list)
    """Training losses since the last point."""
    step_s: list[float] = field(default_factory=list)
    """Wall seconds of every step."""
    cpu_seconds: float = 0.0


def choose_held_out(corpus: Corpus, context: int, num_tokens: int) -> HeldOut:
    """Choose about ``num_tokens`` tokens of held-out text, the same number of each domain where
    there is enough, in evenly spaced sequences.
    """
    length = context + 1
    wanted = max(1, round(num_tokens / context / len(corpus.domains)))
    sequences: list[Bytes] = []
    names: list[str] = []
    for name, text in corpus.domains.items():
        number = min(wanted, len(text.held_out) // length)
        starts = np.linspace(0, len(text.held_out) - length, number).astype(int)
        sequences += [text.held_out[start : start + length] for start in starts]
        names += [name] * number
    return HeldOut(np.stack(sequences), names)


class Training:
    """Training of several models on the same batches: ``run`` trains them, ``curve`` holds their
    losses.
    """

    def __init__(
        self,
        models: dict[str, ModelSpec],
        corpus: Corpus,
        held: HeldOut,
        shape: Shape,
        seed: int,
        recipes: Mapping[str, Recipe],
    ) -> None:
        """Draw the weights.

        Args:
            seed: of weights and batches.
            recipes: of each model.
        """
        self.corpus, self.held, self.shape = corpus, held, shape
        self.curve: list[Point] = []
        self.loss_Q: dict[str, NDArray[np.float64]] = {}
        """Held-out loss of each sequence at the last evaluation, by model."""
        self._models = {name: _begin(model, seed, recipes[name]) for name, model in models.items()}

    def time_a_step(self) -> tuple[dict[str, float], float]:
        """Measure the seconds of a step of each model, and of an evaluation of all, without
        learning; also warms up.
        """
        batch = self._batch(np.random.default_rng(0))
        step_s: dict[str, float] = dict.fromkeys(self._models, math.inf)
        with _reproducible():
            for _ in range(_WARM_UP_ROUNDS):
                for name, trained in self._models.items():
                    began = time.perf_counter()
                    self._loss(trained, batch)[1].backward()
                    trained.optimiser.zero_grad()
                    step_s[name] = min(step_s[name], time.perf_counter() - began)
            began = time.perf_counter()
            for trained in self._models.values():
                self._evaluate(trained.transformer)
        return step_s, time.perf_counter() - began

    def run(self, steps: dict[str, int]) -> Iterator[int]:
        """Train every model for its number of steps; may be called once.

        Models take turns, and who begins changes. One that has fewer steps than another sits out
        some rounds, so that all end together; the learning rate of each falls over its own steps.

        Yields:
            how many rounds are done, of as many as the largest number of steps.
        """
        names, num_rounds = list(self._models), max(steps.values())
        evaluated = {
            name: _list_evaluations(number, self._models[name].recipe.num_evaluations)
            for name, number in steps.items()
        }
        with _reproducible():
            for name in names:
                self._add_point(name, 0)
            for done in range(num_rounds):
                for turn in range(len(names)):
                    name = names[(done + turn) % len(names)]
                    step = steps[name] * done // num_rounds
                    if step == steps[name] * (done + 1) // num_rounds:
                        continue
                    trained = self._models[name]
                    self._step(trained, trained.recipe.rate(step, steps[name]))
                    if step + 1 in evaluated[name]:
                        self._add_point(name, step + 1)
                yield done + 1

    def transformer(self, name: str) -> Transformer:
        """Transformer of a model in its present state."""
        return self._models[name].transformer

    @property
    def step_s(self) -> dict[str, list[float]]:
        """Wall seconds of every step, by model."""
        return {name: trained.step_s for name, trained in self._models.items()}

    def _batch(self, rng: np.random.Generator) -> Tensor:
        """Draw a batch, ``[batch, context + 1]`` bytes; the domain of each sequence is drawn
        evenly.
        """
        texts = [text.training for text in self.corpus.domains.values()]
        length = self.shape.context + 1
        sequences = []
        for domain in rng.integers(len(texts), size=self.shape.batch):
            start = int(rng.integers(len(texts[domain]) - length + 1))
            sequences.append(texts[domain][start : start + length])
        return torch.from_numpy(np.stack(sequences).astype(np.int64))

    def _step(self, trained: _Trained, rate: float) -> None:
        batch = self._batch(trained.batches)
        began, cpu_began = time.perf_counter(), time.process_time()
        for group in trained.optimiser.param_groups:
            group["lr"] = rate
        reported, loss = self._loss(trained, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            trained.transformer.parameters(), trained.recipe.gradient_norm
        )
        trained.optimiser.step()
        trained.optimiser.zero_grad()
        trained.losses.append(float(reported))
        trained.step_s.append(time.perf_counter() - began)
        trained.cpu_seconds += time.process_time() - cpu_began

    def _loss(self, trained: _Trained, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, without and with the auxiliary loss."""
        trained.routed.clear()
        hidden_TH, topk_ids_LTK = trained.transformer(batch[:, :-1].flatten(), _chunk(batch))
        reported = functional.cross_entropy(
            trained.transformer.logits(hidden_TH), batch[:, 1:].flatten()
        )
        loss = reported
        for (router, x_TH), topk_ids_TK in zip(trained.routed, topk_ids_LTK, strict=True):
            loss = loss + trained.recipe.balance * balance_loss(router.scores(x_TH), topk_ids_TK)
        trained.routed.clear()
        return reported.detach(), loss

    def _add_point(self, name: str, step: int) -> None:
        trained = self._models[name]
        loss_Q = self._evaluate(trained.transformer)
        self.loss_Q[name] = loss_Q
        train_loss = float(np.mean(trained.losses)) if trained.losses else math.nan
        tokens = step * self.shape.tokens_per_step
        self.curve.append(
            Point(
                name,
                step,
                tokens,
                sum(trained.step_s),
                trained.cpu_seconds,
                train_loss,
                float(loss_Q.mean()),
            )
        )
        trained.losses.clear()
        trained.routed.clear()

    def _evaluate(self, transformer: Transformer) -> NDArray[np.float64]:
        """Mean loss of each held-out sequence, ``[Q]``."""
        losses = []
        with torch.no_grad():
            for batch in torch.from_numpy(self.held.tokens_QS.astype(np.int64)).split(
                _EVALUATION_SEQUENCES
            ):
                hidden_TH, _ = transformer(batch[:, :-1].flatten(), _chunk(batch))
                loss_T = functional.cross_entropy(
                    transformer.logits(hidden_TH), batch[:, 1:].flatten(), reduction="none"
                )
                losses.append(loss_T.view(len(batch), -1).mean(dim=1))
        return torch.cat(losses).double().numpy()


def route(transformer: Transformer, tokens_QS: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Experts that a mixture of experts chooses for every byte of the sequences except the last.

    Returns:
        ``topk_ids_LTK``, sequence after sequence.
    """
    batches = torch.from_numpy(tokens_QS.astype(np.int64)).split(_EVALUATION_SEQUENCES)
    with torch.no_grad(), _reproducible():
        found = [transformer(batch[:, :-1].flatten(), _chunk(batch))[1] for batch in batches]
    return torch.cat(found, dim=1).to(torch.uint8).numpy()


def balance_loss(score_TE: Tensor, topk_ids_TK: Tensor) -> Tensor:
    """Auxiliary loss of Switch Transformer: 1 for even loads, up to ``E`` where all tokens choose
    one expert.

    Args:
        score_TE: softmax over the experts.
        topk_ids_TK: experts that were chosen.
    """
    num_experts = score_TE.shape[1]
    share_E = topk_ids_TK.flatten().bincount(minlength=num_experts) / topk_ids_TK.numel()
    return num_experts * (share_E * score_TE.mean(dim=0)).sum()


def describe_computation() -> str:
    """Describe the conditions that a run's numbers depend on besides its seed."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def _begin(model: ModelSpec, seed: int, recipe: Recipe) -> _Trained:
    transformer = Transformer(model)
    transformer.load(SeededWeights(seed))
    decayed = [parameter for parameter in transformer.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in transformer.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    trained = _Trained(transformer, recipe, optimiser, np.random.default_rng(seed))
    for module in transformer.modules():
        if isinstance(module, Router):
            module.register_forward_hook(
                lambda router, seen, _: trained.routed.append((router, seen[0]))
            )
    return trained


def _list_evaluations(num_steps: int, num_evaluations: int) -> set[int]:
    """List the steps after which a model is evaluated: evenly spaced, the last one included.

    >>> sorted(_list_evaluations(40, 3))
    [0, 13, 27, 40]
    """
    return {round(share * num_steps) for share in np.linspace(0, 1, num_evaluations + 1)}


def _chunk(batch: Tensor) -> Chunk:
    return Chunk(num_sequences=len(batch), new_tokens=batch.shape[1] - 1, context_tokens=0)


@contextmanager
def _reproducible() -> Iterator[None]:
    """Sum in the same order every time within this context: gradients of one row are otherwise
    added up by several threads in any order.
    """
    deterministic: Any = (
        torch.utils.deterministic
    )  # its setting is made at run time, which type checkers cannot see
    was, filled = (
        torch.are_deterministic_algorithms_enabled(),
        deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = (
        False  # would only cost time: no kernel here reads what it has not written
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        deterministic.fill_uninitialized_memory = filled


# Search for each model's learning rate: short trainings at the same few rates, judged by their
# held-out loss.


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
