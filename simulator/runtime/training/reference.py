"""Reference of a training: the whole model in one process, which every split must equal."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import SeededWeights
from simulator.runtime.training.job import TrainingJob
from simulator.runtime.training.rank import RankStep

_LEAST = 0.01
"""Size of a gradient, over the largest one's, below which errors are not relative to it."""

Gradients = dict[str, NDArray[np.float32]]


class ReferenceTraining:
    """Whole model of a job in training, the whole batch at once."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        with torch.no_grad():
            self.model = Transformer(job.block.model)
            self.model.load(SeededWeights(job.block.seed))
        self.optimizer = job.make_optimizer(list(self.model.parameters()))

    def step(self, number: int) -> tuple[float, Gradients]:
        """Train one step.

        Returns:
            Sum of all tokens' cross-entropies (nats), and the gradient of every weight.
        """
        job = self.job
        ids = job.draw_sequences(number)
        known = [
            torch.from_numpy(planned)
            for layer in range(job.block.model.num_moe_layers)
            if (planned := job.block.ids_TJ(layer, number * job.num_tokens, job.num_tokens))
            is not None
        ]
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with torch.enable_grad():
            hidden_TH, _ = self.model(
                ids[:, :-1].flatten(),
                Chunk(job.global_batch, job.sequence_tokens, 0),
                None,
                torch.stack(known) if known else None,
            )
            loss = functional.cross_entropy(
                self.model.logits(hidden_TH), ids[:, 1:].flatten(), reduction="sum"
            )
            (loss / job.num_tokens).backward()
        gradients = self._name_gradients()
        self.optimizer.step()
        return float(loss.detach()), gradients

    def _name_gradients(self) -> Gradients:
        """Gradients by the names of their weights: those of a copy whose weights they are."""
        named = copy.deepcopy(self.model)
        with torch.no_grad():
            for copied, own in zip(named.parameters(), self.model.parameters(), strict=True):
                copied.copy_(torch.zeros_like(own) if own.grad is None else own.grad)
        return {name: values.detach().numpy() for name, values in named.named_weights()}


def find_largest_error(wanted: Gradients, ranks: Sequence[RankStep]) -> float:
    """Find the largest difference of any rank's gradients from the reference's, over the largest
    number in the same weight's gradient, or over a hundredth of that in any weight's where it is
    smaller: the router's gradient is nothing but rounding with one expert a token.

    Raises:
        ValueError: if the ranks lack a weight, or have one that the reference has not.
    """
    held = {name for rank in ranks for name in rank.gradients}
    if held != set(wanted):
        raise ValueError(f"weights differ: {sorted(held ^ set(wanted))}")
    largest = {name: float(np.abs(values).max()) for name, values in wanted.items()}
    least = _LEAST * max(largest.values())
    return max(
        float(np.abs(own - wanted[name]).max()) / max(largest[name], least)
        for rank in ranks
        for name, own in rank.gradients.items()
    )
