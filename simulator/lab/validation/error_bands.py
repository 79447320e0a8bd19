"""80 % bands of predictions: those of the calibration's residuals, wider where nothing was
measured.

A band is a pair of factors that a prediction is multiplied with. It widens in log space about its
own middle, since errors of times are ratios, and a fit may be biased.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.config.calibration.fit import Fit

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

    def spread(
        self, seconds: ArrayLike, wider: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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
