"""Loss of dense models and of mixtures of experts by one formula, over parameters, tokens and
experts.
"""

from __future__ import annotations

import math
from typing import Literal

from simulator.base.quantities import Coefficient
from simulator.config.laws import ModelSize
from simulator.config.laws._loss import LossLaw, saturate_experts


class Joint(LossLaw):
    """``L = a Ê^delta N^(alpha + gamma ln Ê) + b Ê^omega D^(beta + zeta ln Ê) + c`` with ``N``
    active parameters, embeddings included, and ``Ê`` the effective number of experts
    (Ludziejewski et al. 2025, arXiv:2502.05172, equations 4 and 6).

    Fitted on one expert a token; read here with the expansion as the number of experts.
    """

    kind: Literal["joint"]
    """Sum of powers whose factors and exponents follow the number of experts."""
    a: Coefficient
    """Factor of the parameters' term."""
    alpha: Coefficient
    """Exponent of parameters."""
    delta: Coefficient
    """Exponent of experts in the parameters' term."""
    gamma: Coefficient
    """Change of the parameters' exponent with the logarithm of experts."""
    b: Coefficient
    """Factor of the tokens' term."""
    beta: Coefficient
    """Exponent of tokens."""
    omega: Coefficient
    """Exponent of experts in the tokens' term."""
    zeta: Coefficient
    """Change of the tokens' exponent with the logarithm of experts."""
    e_start: Coefficient
    """Effective number of experts of a dense model."""
    e_max: Coefficient
    """Highest effective number of experts."""
    c: Coefficient
    """Loss that no model goes below, a number of nats a token."""

    def predict_loss(self, size: ModelSize, tokens: float) -> float:
        experts = saturate_experts(size.expansion, self.e_start, self.e_max)
        log = math.log(experts)
        parameters = size.active + size.embedding
        by_size = self.a * experts**self.delta * parameters ** (self.alpha + self.gamma * log)
        by_data = self.b * experts**self.omega * tokens ** (self.beta + self.zeta * log)
        return float(by_size + by_data + self.c)

    def measure(self, size: ModelSize, tokens: float) -> dict[str, float]:
        counted = size.active + size.embedding
        return super().measure(size, tokens) | {"active_parameters": counted}
