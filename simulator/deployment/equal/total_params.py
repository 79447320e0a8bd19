"""Parameters in all: what has to be stored."""

from __future__ import annotations

from simulator.base.frozen import Frozen
from simulator.base.text import count_text
from simulator.config.model import ModelSpec
from simulator.deployment.equal import Measure


class TotalParams(Frozen):
    """All parameters."""

    def make_measure(self, reference: ModelSpec, where: str) -> Measure:
        return Measure("total parameters", lambda model: model.num_parameters, count_text)
