"""Parameters that one token uses, embeddings included: what has to be computed."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.text import count_text
from simulator.config.model import ModelSpec
from simulator.deployment.equal import Measure


class ActiveParams(Frozen):
    """Parameters that one token uses."""

    def make_measure(self, reference: ModelSpec, where: str) -> Measure:
        return Measure("active parameters", lambda model: model.num_used_parameters, count_text)
