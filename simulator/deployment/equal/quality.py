"""Quality by a scaling law: the parameters of the dense model that the law calls equal."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.quantities import TrainingTokens
from simulator.base.text import count_text
from simulator.config.law_file import LawFile, load_law, measure_size
from simulator.config.model import ModelSpec
from simulator.deployment.equal import Measure

_TOKENS_PER_PARAMETER = 20.0
"""Tokens of training for each parameter that a token uses where nobody says otherwise: the
compute-optimal ratio of Hoffmann et al. (2022), arXiv:2203.15556."""


class Quality(Frozen):
    """Loss after training on as many tokens, by a scaling law."""

    law: str = "joint-moe"
    """Name of a file in ``workloads/laws``."""
    tokens: TrainingTokens | None = None
    """Tokens that both are trained on; absent = 20 for each parameter that a token of the given
    model uses."""

    def make_measure(self, reference: ModelSpec, where: str) -> Measure:
        law = load_law(self.law, where)
        tokens = self.tokens or _TOKENS_PER_PARAMETER * reference.num_used_parameters
        return Measure(
            "quality",
            lambda model: law.find_equal_dense(measure_size(model), tokens),
            lambda value: f"a dense model of {count_text(value)}",
            _list_notes(law, reference, tokens),
        )


def _list_notes(law: LawFile, reference: ModelSpec, tokens: float) -> tuple[str, ...]:
    told = [f"Equal quality by: {law.title}, after {count_text(tokens)} tokens of training."]
    outside = law.list_outside(measure_size(reference), tokens)
    if outside:
        told.append(f"The law is asked beyond what it was fitted on: {'; '.join(outside)}.")
    return tuple(told)
