"""Loss of a dense model as a sum of powers of its parameters and of its training tokens."""

from __future__ import annotations

from typing import Literal

from simulator.base.errors import UserError
from simulator.base.quantities import Coefficient
from simulator.config.laws import ModelSize
from simulator.config.laws._loss import LossLaw


class PowerSum(LossLaw):
    """``L = e + a / N^alpha + b / D^beta`` with ``N`` all parameters and ``D`` training tokens
    (Hoffmann et al. 2022, arXiv:2203.15556, equation 2). Dense models only.
    """

    kind: Literal["power_sum"]
    """Sum of powers of parameters and tokens."""
    e: Coefficient
    """Loss that no model goes below, a number of nats a token."""
    a: Coefficient
    """Factor of the parameters' term."""
    alpha: Coefficient
    """Exponent of parameters."""
    b: Coefficient
    """Factor of the tokens' term."""
    beta: Coefficient
    """Exponent of tokens."""

    def predict_loss(self, size: ModelSize, tokens: float) -> float:
        if not size.is_dense:
            raise UserError(
                "the law holds for dense models only; choose one that was fitted on mixtures of "
                "experts as well, such as joint-moe"
            )
        parameters = size.total + size.embedding
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def measure(self, size: ModelSize, tokens: float) -> dict[str, float]:
        counted = size.total + size.embedding
        return super().measure(size, tokens) | {"total_parameters": counted}
