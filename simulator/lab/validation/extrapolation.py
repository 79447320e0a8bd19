"""Why a price is not of the very kernels that were measured, and how much wider its band is for it.

The widths are what the tables themselves show. Rows of a GPU that was left out as a whole, priced
with what was fitted on the other one (H100 by Blackwell's coefficients, B200 by Hopper's, each with
its own peaks), need bands 0.6 to 14 times as wide for four of five to lie inside, 3.6 at the median
of 100 kernels; four times holds 80 % of all rows, twice 60 %: :data:`SIBLING`. No two GPUs of one
family were timed, so a sibling, which has the same kernels, has no narrower band. Rows of one
engine, priced by another engine's kernels of the same format, need 2.4 times (experts) and 3.1
times (latent attention) at the median: :data:`OTHER_KERNELS`. Doubts that come together add up as
independent errors do, by their squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from simulator.base.arrays import Bools, Floats
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration.fit import Fit
from simulator.lab.validation import OK

SIBLING = 4.0
"""Factor on a band's width in log space on a GPU whose kernels were not timed, priced by those of
one that were."""
OUTSIDE = 2.0
"""Factor on a band's width outside the measured range of sizes."""
OTHER_KERNELS = 3.0
"""Factor on a band's width where the kernels of another engine, or of another number format, were
measured."""
_UNMEASURED = 1.0
"""Doubt without any measurement: an assumed entry's band is as wide already as that asks for, and
:func:`no_narrower` than where more is known."""


class Doubt(NamedTuple):
    """One reason."""

    why: str
    wider: float = OTHER_KERNELS


def of_hardware(fit: Fit, accelerator: AcceleratorSpec, what: str, dtype: str = "") -> list[Doubt]:
    """Doubts about the GPU, or none where the fit saw this very one.

    Args:
        what: was measured or was not, in the plural: ``bf16 products``.
        dtype: of weights that are multiplied, if any are.
    """
    if fit.kind == "assumed":
        doubts = [Doubt(f"no measured {what} on its family", _UNMEASURED)]
        if lacking := accelerator.lacks(dtype):
            why = (
                f"no {lacking} arithmetic on {accelerator.name}, priced as 16-bit products "
                "with weights unpacked"
            )
            doubts.append(Doubt(why, _UNMEASURED))
        return doubts
    if fit.accelerator != accelerator.name:
        return [Doubt(f"measured on {fit.accelerator or 'another GPU of its family'}", SIBLING)]
    return []


def settle(
    num_rows: int,
    doubts: Sequence[Doubt],
    outside: Mapping[str, Bools],
    others: Sequence[tuple[Doubt, Bools]] = (),
) -> tuple[list[str], Floats]:
    """The status of every row, and how much wider its band is.

    Args:
        doubts: about all rows.
        outside: by quantity, which rows lie outside its measured range.
        others: further doubts about some rows.

    >>> settle(2, [], {"m": np.array([False, True])})
    (['ok', 'extrapolated: m outside the measured range'], array([1., 2.]))
    """
    masks = [*(mask for _, mask in others), *outside.values()]
    flags_nF = np.stack(masks, axis=1) if masks else np.zeros((num_rows, 0), dtype=bool)
    kinds_uF, codes = np.unique(flags_nF, axis=0, return_inverse=True)
    found = [_one(doubts, kind, list(outside), others) for kind in kinds_uF] or [
        _one(doubts, (), [], [])
    ]
    codes = codes.ravel() if flags_nF.shape[1] else np.zeros(num_rows, dtype=np.intp)
    statuses = np.array([status for status, _ in found], dtype=object)[codes]
    return statuses.tolist(), np.array([wider for _, wider in found])[codes]


def _one(
    doubts: Sequence[Doubt],
    flags: Sequence[bool] | Bools,
    names: list[str],
    others: Sequence[tuple[Doubt, Bools]],
) -> tuple[str, float]:
    here = [*doubts, *(doubt for (doubt, _), is_so in zip(others, flags, strict=False) if is_so)]
    away = [name for name, is_out in zip(names, flags[len(others) :], strict=False) if is_out]
    if away:
        here.append(Doubt(f"{', '.join(away)} outside the measured range", OUTSIDE))
    if not here:
        return OK, 1.0
    wider = np.sqrt(1.0 + sum(doubt.wider**2 - 1.0 for doubt in here))
    return f"extrapolated: {'; '.join(doubt.why for doubt in here)}", float(wider)


def no_narrower(
    band: tuple[Floats, Floats],
    seconds: Floats,
    seen: Fit,
    doubts: Sequence[Doubt],
    outside: Mapping[str, Bools],
) -> tuple[Floats, Floats]:
    """Low and high of an assumed entry, no narrower than on a GPU of a family that was measured.

    Args:
        seen: the entry for the same engine and format of that family, whose GPUs are priced for
            this.
        doubts: about the row itself, not about the GPU.
        outside: by quantity, which rows lie outside the range of ``seen``.
    """
    others = [] if seen.kind == "assumed" else [Doubt("another GPU of the family", SIBLING)]
    _, wider = settle(len(seconds), [*doubts, *others], outside)
    low, high = Band.from_fit(seen).spread(seconds, wider)
    return np.minimum(band[0], low), np.maximum(band[1], high)


def outside_of(fit: Fit, **quantities: Floats) -> dict[str, Bools]:
    """Rows outside the fit's range, by each quantity that it has a range of."""
    return {
        name: (values < fit.domain[name][0]) | (values > fit.domain[name][1])
        for name, values in quantities.items()
        if name in fit.domain
    }


# 80 % bands of predictions: those of the calibration's residuals, wider where nothing was
# measured.
#
# A band is a pair of factors that a prediction is multiplied with. It widens in log space about its
# own middle, since errors of times are ratios, and a fit may be biased.


EXTRAPOLATED = 2.0
"""Factor on a band's width in log space outside the measured domain."""
_LEAST_EXTRAPOLATED = 1.2
"""Least factor either way there: a table that scatters little says nothing of what it does not
hold. Half, in logarithms, of what H100 and B200 differ by at the median where one is priced by the
other's fit."""


class Band(NamedTuple):
    """Factors on a prediction for its low and its high."""

    low: float
    high: float
    is_assumed: bool = False
    """Whether no measurement stands behind it."""

    @classmethod
    def from_fit(cls, fit: Fit | None) -> Band:
        """The band of a fit's residuals; :data:`ASSUMED` where it has none.

        >>> Band.from_fit(None)
        Band(low=0.5, high=2.0, is_assumed=True)
        """
        return ASSUMED if fit is None or fit.band is None else cls(*fit.band)

    def widen(self, by: float = EXTRAPOLATED) -> Band:
        """Band about the same middle, ``by`` times as wide in log space.

        >>> Band(0.8, 1.25).widen()
        Band(low=0.64, high=1.5625, is_assumed=False)
        """
        middle = float(np.sqrt(self.low * self.high))
        wide = (self.high / self.low) ** (by / 2)
        return Band(round(middle / wide, 12), round(middle * wide, 12), self.is_assumed)

    def spread(self, seconds: ArrayLike, wider: ArrayLike) -> tuple[Floats, Floats]:
        """Lower and upper ends, in seconds, of bands that are ``wider`` times as wide as the fit's
        (:mod:`simulator.lab.validation.extrapolation`), of predictions of any shape.

        Where a fit's residuals lie on one side of its predictions, so does its band, which is then
        stretched to the prediction: such a prediction is the very low or high. It says that
        measurements of this kind are mostly larger (or smaller).

        >>> low, high = Band(0.95, 1.05).spread([1.0, 1.0], [1.0, 2.0])
        >>> [round(float(value), 3) for value in (*low, *high)]
        [0.95, 0.832, 1.05, 1.198]
        """
        values, factor = np.asarray(seconds, dtype=float), np.asarray(wider, dtype=float)
        middle, half = np.log(self.low * self.high) / 2, np.log(self.high / self.low) / 2
        wide = np.where(
            factor > 1.0, np.maximum(factor * half, np.log(_LEAST_EXTRAPOLATED)), factor * half
        )
        # A factor of one keeps the very numbers of the file.
        low = np.where(factor == 1.0, self.low, np.exp(middle - wide))
        high = np.where(factor == 1.0, self.high, np.exp(middle + wide))
        return values * np.minimum(low, 1.0), values * np.maximum(high, 1.0)


ASSUMED = Band(0.5, 2.0, is_assumed=True)
"""Band of assumed numbers, of which nothing was measured: a factor of two either way, which is a
guess too."""
