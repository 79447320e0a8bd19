"""Measurement of what sparsity saves: products with pruned matrices, timed on this processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from simulator.base.frozen import Frozen
from simulator.base.progress import Progress
from simulator.base.quantities import Tokens
from simulator.commands.sparsity import REAL_SHAPE, REAL_TOKENS, measure_here
from simulator.lab.commands.claim_measurements import Trial
from simulator.lab.results.claims import Case
from simulator.results.sparsity import SpeedCurve
from simulator.runtime import require

_SHOWN = (0.5, 0.7, 0.9)
"""Sparsities of which cases are made."""
_SECONDS = 5.0
"""Seconds of all formats and sparsities for each number of tokens; 13 s for three of them on two
idle cores of an AMD EPYC."""
_FORMATS = {"csr": "CSR", "block": "block-sparse", "two_four": "2:4"}
"""Formats in words, by kernels."""


class Sparsity(Frozen):
    """Time of a product with the whole matrix over that with the pruned one, as ``moesim sparsity
    --real`` measures it.
    """

    tokens: Annotated[tuple[Tokens, ...], Field(strict=False, min_length=1)] = REAL_TOKENS
    """Tokens of the products."""

    @property
    def command(self) -> str:
        return "moesim sparsity --real"

    def identify(self) -> str:
        return self.model_dump_json()

    def expect_s(self) -> float:
        require("torch", "measuring pruned layers")
        return _SECONDS * len(self.tokens)

    def measure(self, tick: Progress) -> Trial:
        require("torch", "measuring pruned layers")
        found = measure_here(REAL_SHAPE, self.tokens, tick)
        cases = tuple(case for curve in found.curves for case in _list_cases(curve))
        return Trial(cases, tuple(map(_tell, found.curves)), found.others_share, found.made)


def _list_cases(curve: SpeedCurve) -> Iterator[Case]:
    for sparsity in _SHOWN:
        speed = curve.find_speed(sparsity)
        if speed is not None:
            yield Case(
                rival="itself, before pruning",
                conditions={
                    "format": _FORMATS[curve.kernels],
                    "at once": curve.tokens_text,
                    "taken away": f"{sparsity:.0%}",
                },
                ratio=speed,
                low=speed,
                high=speed,
            )


def _tell(curve: SpeedCurve) -> str:
    """Sentence on where a format breaks even."""
    name = f"Products of {curve.tokens_text} with {_FORMATS[curve.kernels]} matrices"
    if len(curve.sparsities) == 1:
        return f"{name} take {1 / curve.speed_ups[0]:.2g} times the time of whole ones."
    if curve.break_even is None:
        return f"{name} are slower than whole ones up to {curve.sparsities[-1]:.0%} sparsity."
    return f"{name} are as fast as whole ones from {curve.break_even_text} sparsity on."
