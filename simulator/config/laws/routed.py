"""Loss of routed models after a fixed number of tokens, bilinear in the logarithms of parameters
and experts.
"""

from __future__ import annotations

import math
from typing import Literal

from simulator.base.quantities import Coefficient
from simulator.config.laws import ModelSize
from simulator.config.laws._loss import LossLaw, saturate_experts


class Routed(LossLaw):
    """``log10 L = a log10 N + b log10 Ê + c log10 N log10 Ê + d`` with ``N`` active parameters and
    ``Ê`` the effective number of experts (Clark et al. 2022, arXiv:2202.01169, equation 1).

    Fitted on one expert a token; read here with the expansion as the number of experts. The
    tokens of training were the same for all and do not enter.
    """

    kind: Literal["routed"]
    """Bilinear in the logarithms of parameters and experts."""
    a: Coefficient
    """Exponent of parameters."""
    b: Coefficient
    """Exponent of experts."""
    c: Coefficient
    """Coefficient of the product of both logarithms."""
    d: Coefficient
    """Logarithm of the factor."""
    e_start: Coefficient
    """Effective number of experts of a dense model."""
    e_max: Coefficient
    """Highest effective number of experts."""

    def predict_loss(self, size: ModelSize, tokens: float) -> float:
        parameters = math.log10(size.active)
        experts = math.log10(saturate_experts(size.expansion, self.e_start, self.e_max))
        power = self.a * parameters + self.b * experts + self.c * parameters * experts + self.d
        return float(10**power)
