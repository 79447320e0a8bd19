"""Novelty of a serving point beside the points that the engines' own times were fitted on."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.config.calibration import ANY, load_calibration
from simulator.config.calibration.engine import EngineFit, parse_release
from simulator.deployment.plan import DeploymentPlan
from simulator.validation.hardware import load_family
from simulator.validation.serving.points import Point

_LOAD = {"isl": "input length", "osl": "output length", "concurrency": "concurrency"}


class Novelty(NamedTuple):
    """Reasons why an answer is an extrapolation."""

    held: tuple[str, ...]
    """Models and GPUs without points: bands are of whole models and GPUs left out, so they hold as
    they are."""
    wider: tuple[str, ...]
    """Releases and loads, which no band is of."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons of both kinds."""
        return (*self.held, *self.wider)


def novelty_of(point: Point, plan: DeploymentPlan) -> Novelty:
    """Novelty of a point to the fits of its engine; none where they do not say what they saw."""
    placement = plan.placement
    family = load_family(placement.accelerator.calibration)
    if (
        family is None or point.prefill is not None
    ):  # pools have a fit of their own, which says what it has seen
        return Novelty((), ())
    every, own = family.engine[ANY], family.engine.get(point.engine)
    held, wider = [], []
    if every.models and plan.spec.model not in _models():
        held.append(f"no serving points of {placement.model.title or plan.spec.model} were fitted")
    if every.gpus and placement.accelerator.name not in every.gpus:
        held.append(f"no serving points on {placement.accelerator.title} were fitted")
    release = ".".join(map(str, parse_release(point.version)))
    if placement.calibration.engine.kind == "assumed":
        of_release = every.kind != "assumed" and release
        wider.append(
            f"the own time of {point.engine} {release} is assumed"
            if of_release
            else f"no serving points of {placement.accelerator.title} were fitted"
        )
    elif own and own.releases and release and release not in own.releases:
        wider.append(f"no serving points of {point.engine} {release} were fitted")
    outside = every.outside(
        isl=point.num_input, osl=point.num_output, concurrency=point.concurrency
    )
    if outside:
        wider.append(
            f"{', '.join(_LOAD[name] for name in outside)} outside the range of what was fitted"
        )
    return Novelty(tuple(held), tuple(wider))


@cache
def _models() -> frozenset[str]:
    """Models of which some calibration has serving points: an engine's own time is that of its
    host, whatever the GPU.
    """
    found: set[str] = set()
    for name in available_files("cluster_configs/calibration"):
        try:
            fit: EngineFit = load_calibration(name, "serving point").engine[ANY]
        except UserError:  # a machine's own, or a user's that is of no use here
            continue
        found |= set(fit.models)
    return frozenset(found)
