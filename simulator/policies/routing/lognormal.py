"""Log-normal popularity, with persistence and affinity: the synthetic router that resembles
measured ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Discriminator, Field, Tag, field_validator

from simulator.base.arrays import Floats
from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.quantities import Duration, Ratio, Spread, value_range
from simulator.config.ffns.moe import MoE
from simulator.config.model import MEDIAN_SIGMA
from simulator.policies.routing import Router
from simulator.policies.routing._popularity import MAX_TOPICS, with_affinity, with_persistence

_Kept = Annotated[float, value_range(0, 0.999)]
ByLayer = Annotated[
    Annotated[_Kept, Tag("number")] | Annotated[dict[str, _Kept], Tag("table")],
    Discriminator(lambda value: "table" if isinstance(value, dict) else "number"),
]
"""Share in all layers, or by number of the MoE layer."""

_MOST_CHANCES = 1 << 25
"""Most probabilities held at once, by domain, layer, topic and expert: 256 MiB, of which drawing
takes a few."""


_DRAWS, _STAGES_A_DRAW = 4, 4
"""Draws that a drifting popularity turns into one after another, and stages from one to the next:
neighbouring stages correlate by 0.92, and two kinds of text have 32 load profiles, of 64."""


def _turn(draws_MDLE: Floats) -> Floats:
    """Turn each standard normal draw into the next, the last into the first, so that every stage is
    as spread as any, ``[D x S, L, E]``.
    """
    quarter = np.pi / 2 * np.arange(_STAGES_A_DRAW) / _STAGES_A_DRAW
    next_MDLE = np.roll(draws_MDLE, -1, axis=0)
    stages = [
        np.cos(angle) * one + np.sin(angle) * other
        for one, other in zip(draws_MDLE, next_MDLE, strict=True)
        for angle in quarter
    ]
    return np.stack(stages, axis=1).reshape(-1, *draws_MDLE.shape[2:])


class Lognormal(Frozen):
    """Each domain and layer draws its experts' popularity once, log-normally; it then stays fixed
    in time, or turns into other draws at a given rate.

    That is how measured routing behaves: stable within a kind of text, nearly uncorrelated between
    kinds and between layers.
    """

    sigma: Spread = Field(default=MEDIAN_SIGMA, examples=[0.65])
    """Spread (standard deviation of the logarithm) of popularity; 0 is uniform. Absent = the median
    of measured models."""
    num_domains: Annotated[int, value_range(1, 4096, "kinds of text")] = 1
    """Number of kinds of text, each with its own popularity; every run of tokens is of one of them,
    drawn evenly."""
    persistence: ByLayer = 0.0
    """Probability that a token keeps an expert of the previous token in its run, so the share of
    experts that consecutive tokens have in common. The part that popularity and affinity cause by
    themselves counts towards it, and is its floor. A number holds in all layers; a table such as
    ``{ 0 = 0.26, 15 = 0.38 }`` names MoE layers, counted from 0, and the layers between them are
    interpolated."""
    repetition: ByLayer = 0.0
    """Probability that a token keeps all experts of the previous token in its run, in the same
    order: a part of ``persistence``, and given as that is."""
    affinity: Ratio = 0.0
    """Probability that a token picks an expert from its own topic instead of the whole layer;
    experts of one topic (up to 16 topics a layer, or experts in pairs) are then used together more
    often than their popularity explains."""

    drift_s: Duration | None = None
    """Seconds in which the popularity of experts within each kind of text turns from one draw into
    an independent one, as spread as that, and so on; after four of them it begins anew. A request
    keeps the popularity at its arrival. Absent = popularity stays."""

    @field_validator("persistence", "repetition")
    @classmethod
    def _check_layers(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        if isinstance(value, dict) and not (value and all(map(str.isdecimal, value))):
            raise ValueError(
                f"names MoE layers by their numbers, from 0, as in {{ 0 = 0.3, 15 = 0.4 }}, got "
                f"{', '.join(value) or 'none'}"
            )
        return value

    @property
    def _num_stages(self) -> int:
        return 1 if self.drift_s is None else _DRAWS * _STAGES_A_DRAW

    def prepare(self, moe: MoE, num_layers: int, rng: np.random.Generator) -> Router:
        self._check_size(moe, num_layers)
        shape = (self.num_domains, num_layers, moe.num_experts)
        if self.drift_s is None:
            share_DLE = np.exp(self.sigma * rng.standard_normal(shape))
            router = with_affinity(moe, share_DLE, self.affinity, rng)
        else:
            share_DLE = np.exp(self.sigma * _turn(rng.standard_normal((_DRAWS, *shape))))
            router = with_affinity(moe, share_DLE, self.affinity, rng)
            stage_s = self.drift_s / _STAGES_A_DRAW
            router = replace(router, num_stages=self._num_stages, stage_s=stage_s)
        persistence_L, repetition_L = (
            self._spread(name, num_layers) for name in ("persistence", "repetition")
        )
        if (repetition_L > persistence_L).any():
            raise UserError(
                "routing kind 'lognormal': repetition is a part of persistence, and must be at "
                f"most that in every layer; in layer {(repetition_L > persistence_L).argmax()} it "
                "is more"
            )
        if not persistence_L.any():
            return router
        return with_persistence(router, persistence_L, repetition_L, rng)

    def _spread(self, name: str, num_layers: int) -> Floats:
        """Find a key's value in each layer, ``[L]``."""
        value: float | dict[str, float] = getattr(self, name)
        if not isinstance(value, dict):
            return np.full(num_layers, value)
        at = sorted((int(layer), share) for layer, share in value.items())
        if at[-1][0] >= num_layers:
            raise UserError(
                f"routing kind 'lognormal': {name} names layer {at[-1][0]:,}, and the model's "
                f"{num_layers:,} MoE layers are 0 to {num_layers - 1:,}"
            )
        layers, shares = np.array(at).T
        return np.asarray(np.interp(np.arange(num_layers), layers, shares), dtype=np.float64)

    def _check_size(self, moe: MoE, num_layers: int) -> None:
        topics = MAX_TOPICS if self.affinity > 0 else 1
        of_one = topics * num_layers * moe.num_experts * self._num_stages
        if self.num_domains * of_one > _MOST_CHANCES:
            raise UserError(
                f"routing kind 'lognormal': num_domains ({self.num_domains:,}) must be at most "
                f"{max(1, _MOST_CHANCES // of_one):,} kinds of text with {num_layers} layers of "
                f"{moe.num_experts:,} experts"
            )
