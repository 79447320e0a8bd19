"""Calibration entries that prices are based on, and what their fits have not seen."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from functools import cache

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.config.calibration import (
    ANY,
    CalibrationFile,
    Fit,
    PriceKey,
    load_calibration,
    read_calibration,
)
from simulator.config.calibration.engine import (
    EngineFit,
    LatencyBands,
    Unseen,
    find_engine_key,
    parse_release,
)
from simulator.config.host import load_any_calibration
from simulator.deployment.plan import DeploymentPlan
from simulator.policies.dispatch import kernels_of


def fits_of(plan: DeploymentPlan) -> dict[str, Fit]:
    """Find the calibration entries that price a plan, by what they price (``attention in decode``).

    Raises:
        UserError: if a machine's calibration has no collectives of so many ranks.
    """
    return plan.placement.calibration.list_fits(price_key_of(plan))


def price_key_of(plan: DeploymentPlan) -> PriceKey:
    """Describe a plan by what its calibration entries are looked up with."""
    placement = plan.placement
    experts, precision = placement.experts, placement.precision
    return PriceKey(
        weights=precision.weights,
        experts=None if experts is None else precision.experts,
        num_experts=None if placement.model.moe is None else placement.model.moe.num_experts,
        travels=experts is not None and placement.layout.travels,
        is_split=placement.layout.tp > 1,
        kernels=() if experts is None else kernels_of(experts.dispatch),
        cache=precision.kv,
        is_latent=placement.model.has_latent_cache,
        pruning=plan.spec.pruning,
    )


ASSUMED = LatencyBands(band=(0.5, 2.0), ttft_band=(0.5, 2.0))
"""Bands where nothing was measured: a factor of two either way."""
_MOST_MEASURED = "hopper"
"""Family of GPUs of which most was measured."""


def list_unseen(plan: DeploymentPlan, version: str = "") -> dict[Unseen, str]:
    """Model, GPU and release without points in the fits, each in words; none where the fits do not
    say what they saw.

    Args:
        version: of the engine, where its name says none.
    """
    placement, (engine, _, named) = plan.placement, plan.spec.engine.partition("@")
    family = load_any_calibration(placement.accelerator.calibration, "bands")
    if not isinstance(family, CalibrationFile):  # one machine's own
        return {}
    every, own = family.engine[ANY], family.engine.get(engine)
    found: dict[Unseen, str] = {}
    model = plan.spec.model
    if every.models and model not in every.models and model not in _list_models():
        title = placement.model.title or model
        found["model"] = f"no serving points of {title} were fitted"
    fit = placement.calibration.engine
    if every.kind == fit.kind == "assumed" or (
        every.gpus and placement.accelerator.name not in every.gpus
    ):
        found["gpu"] = f"no serving points on {placement.accelerator.title} were fitted"
    release = ".".join(map(str, parse_release(named or version)))
    if fit.kind == "assumed" and every.kind != "assumed" and release:
        found["release"] = f"the own time of {engine} {release} is assumed"
    elif own and own.models and release and release not in _list_releases(family, engine):
        key = find_engine_key(tuple(family.engine), f"{engine}@{release}") or engine
        taken = key.partition("@")[2] or "all releases together"
        found["release"] = f"no serving points of {engine} {release} were fitted, priced as {taken}"
    return found


def _list_releases(family: CalibrationFile, engine: str) -> set[str]:
    """Releases of an engine with points in any of its entries."""
    entries = [fit for key, fit in family.engine.items() if key.partition("@")[0] == engine]
    return {release for fit in entries for release in fit.releases}


def find_bands(engine: EngineFit, unseen: Collection[Unseen]) -> LatencyBands:
    """Bands of an engine's entry, widened for what it has not seen. An assumed entry's are those of
    assumed numbers, no narrower than of a GPU, or a release, that was left out where most was
    measured.
    """
    if engine.kind != "assumed":
        return engine.widest_bands(unseen) or ASSUMED
    seen = load_calibration(_MOST_MEASURED, _MOST_MEASURED).engine[ANY]
    return seen.model_copy(update=dict(ASSUMED)).widest_bands(unseen) or ASSUMED


@cache
def _list_models() -> frozenset[str]:
    """Models of which some calibration has serving points: an engine's own time is that of its
    host, whatever the GPU.
    """
    found: set[str] = set()
    for path in available_files("cluster_configs/calibration").values():
        with suppress(UserError):  # a user's that is of no use here
            found |= set(read_calibration(path).get("engine", {}).get(ANY, {}).get("models", ()))
    return frozenset(found)
