"""Novelty of a serving point beside the points that the engines' own times were fitted on."""

from __future__ import annotations

from typing import NamedTuple

from simulator.config.calibration import ANY
from simulator.config.calibration.engine import Unseen
from simulator.deployment.plan import DeploymentPlan
from simulator.deployment.unseen import list_unseen
from simulator.validation.hardware import load_family
from simulator.validation.serving.points import Point

_LOAD = {"isl": "input length", "osl": "output length", "concurrency": "concurrency"}


class Novelty(NamedTuple):
    """Reasons why an answer is an extrapolation."""

    unseen: dict[Unseen, str] = {}
    """Model, GPU and release without points, which have bands of their own
    (:attr:`~simulator.config.calibration.engine.EngineFit.unseen`), each in words."""
    wider: tuple[str, ...] = ()
    """Loads, which no band is of."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons of both kinds."""
        return (*self.unseen.values(), *self.wider)


def novelty_of(point: Point, plan: DeploymentPlan) -> Novelty:
    """Novelty of a point to the fits of its engine; none where they do not say what they saw."""
    family = load_family(plan.placement.accelerator.calibration)
    if (
        family is None or point.prefill is not None
    ):  # pools have a fit of their own, which says what it has seen
        return Novelty()
    outside = family.engine[ANY].outside(
        isl=point.num_input, osl=point.num_output, concurrency=point.concurrency
    )
    loads = ", ".join(_LOAD[name] for name in outside)
    wider = (f"{loads} outside the range of what was fitted",) if loads else ()
    return Novelty(list_unseen(plan, point.version), wider)
