"""How sure the choice is: bands from the calibration's error, other samples of requests and other samples of experts' choices.

The calibration's error is one factor on all of a step's seconds, log-normal with the band of measured over predicted times per token
of the serving engine (whole models and GPUs left out of the fit). It is made up of a factor for each term of the step (weights,
products, cache, ...), all equally uncertain. Two deployments share the factor of a term that the same kernels of the same engine
on the same family of accelerators compute, and err together as far as these terms make up their steps.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.plan import Plan
from simulator.planner.answer import text_of
from simulator.planner.curve import Curve, Terms
from simulator.planner.explore import Finding, Sized
from simulator.planner.room import headroom
from simulator.planner.screen import Option
from simulator.planner.search import Found
from simulator.planner.whatif import AS_ASKED, Change, Trials, gpu_hour, is_whole
from simulator.spec.calibration import Fit

Floats = NDArray[np.float64]

ASSUMED = (0.5, 2.0)
"""Where nothing was measured: a factor of two either way."""
DRAWS = (1, 2, 3)
"""Other samples of requests and of experts' choices."""
_Z = (-2.3, -1.2816, 1.2816, 2.3)
"""Standard deviations at which costs are tabulated, besides what the calibration says; 1.2816 either way holds 80 %."""
_NUM_DRAWS = 4000
_BATCHES = 24
_EDGES = 2
"""Bisections between the slowest calibration that meets the targets and the first that does not."""
_LOAD_STEP = 1.04


class Table(NamedTuple):
    """What one deployment needs if steps take so many times as long."""

    band: tuple[float, float]
    """10th and 90th percentile of measured over predicted time per token."""
    ttft_band: tuple[float, float]
    source: str
    parts: dict[str, float]
    """Share of the step by whose error it is."""
    slower: list[float]
    """Rising."""
    gpus: list[int]
    """Of the smallest cluster; 0 where not even the largest meets the targets."""

    @property
    def middle(self) -> float:
        """Of the logarithm of the factor, likewise."""
        return math.log(self.band[0] * self.band[1]) / 2

    @property
    def spread(self) -> float:
        """Its standard deviation."""
        return math.log(self.band[1] / self.band[0]) / 2 / _Z[-2]


def table_of(trials: Trials, option: Option) -> Table:
    """Costs of one deployment over what its calibration may be off."""
    explorer = trials.explorer(option, AS_ASKED)
    plan = explorer.plan(Sized(0, 1, 1 if option.prefill is not None else 0))
    engine = plan.calibration.engine
    curve = Curve(plan, explorer.traffic, option.budget)
    band = _band(engine.band, engine)
    found = Table(band, _band(engine.ttft_band, engine), engine.source, _parts(curve, plan, option), [], [])
    slower = sorted({1.0, *(math.exp(found.middle + z * found.spread) for z in _Z)})
    gpus = [_size(trials, option, factor) for factor in slower]
    for _ in range(_EDGES):
        edge = next((n for n in range(1, len(slower)) if gpus[n - 1] and not gpus[n]), None)
        if edge is None:
            break
        middle = math.sqrt(slower[edge - 1] * slower[edge])
        slower.insert(edge, middle)
        gpus.insert(edge, _size(trials, option, middle))
    return found._replace(slower=slower, gpus=gpus)


def _band(band: tuple[float, float] | None, engine: Fit) -> tuple[float, float]:
    return ASSUMED if band is None or engine.kind == "assumed" else band


def _size(trials: Trials, option: Option, slower: float) -> int:
    sized = trials.find(option, Change(slower=slower)).sized
    return 0 if sized is None else sized.size


def _parts(curve: Curve, plan: Plan, option: Option) -> dict[str, float]:
    """Shares of a decode step at the time per token that was estimated, by what they have in common with other deployments."""
    batches = np.geomspace(1, max(2, min(option.budget, plan.rules.max_sequences)), _BATCHES)
    terms = curve.terms(batches, np.zeros(_BATCHES), 0.0)
    place = int(np.argmin(np.abs(terms.total - option.tpot_s)))
    experts = "" if plan.model.moe is None else f" of {plan.model.name}"
    formats, wires = plan.precision, "nodes" if plan.layout.num_ranks > plan.cluster.gpus_per_node else "one node"
    apart = {
        "weights": f"{formats.weights} {formats.experts}{experts}",
        "products": f"{formats.weights} {formats.experts}{experts}",
        "cache": formats.kv,
        "prompts": formats.kv,
        "waiting": plan.model.name,
        "exchanges": wires,
        "all_reduces": wires,
        "host": "",
    }
    where = f"{plan.accelerator.calibration} {plan.spec.engine}"
    total = float(terms.total[place])
    return {
        f"{name} {apart[name]} {where}": float(seconds[place]) / total
        for name, seconds in zip(Terms._fields, terms, strict=True)
        if seconds[place] > 0
    }


def redrawn(trials: Trials, options: tuple[Option, ...], sized: Sized) -> list[dict[str, Any]]:
    """For each other sample: GPUs that each option needs, and what the first one does at its recommended size."""
    rows = []
    for draw in DRAWS:
        change = Change(draw=draw)
        found = [trials.find(option, change).sized for option in options]
        outcome = trials.trial(options[0], sized, change)
        rows.append(
            {"gpus": [0 if one is None else one.size for one in found], "ratios": outcome.ratios, "measured": outcome.measured}
        )
    return rows


def at_its_size(trials: Trials, option: Option, sized: Sized, table: Table) -> list[dict[str, Any]]:
    """What the recommended size does and carries if steps take so many times as long; of the fastest, the median and the slowest."""
    rows = []
    for factor in table.slower:
        change = Change(slower=factor)
        outcome = trials.trial(option, sized, change)
        rows.append({"slower": factor, "ratios": outcome.ratios, "measured": outcome.measured})
    return rows


def carried(trials: Trials, option: Option, sized: Sized, slower: float) -> float:
    """Times the traffic that so many replicas carry with all targets met if steps take so many times as long."""
    return headroom(trials.explorer(option, Change(slower=slower)), sized, _LOAD_STEP)


class Doubted(NamedTuple):
    """The choices that are compared, and everything that was found about them."""

    first: Finding
    second: Finding | None
    """The next one that is another deployment: other machines, model, format or split."""
    moe: Finding | None
    dense: Finding | None
    tables: Mapping[Option, Table]
    redrawn: list[dict[str, Any]]
    """Of :func:`redrawn` for the first and the second."""
    slowed: list[dict[str, Any]]
    """Of :func:`at_its_size` for the first."""
    room: tuple[float, float]
    """Of :func:`carried` where the calibration is too fast and too slow."""

    @property
    def options(self) -> tuple[Option, ...]:
        """All that need a table."""
        chosen = (self.first, self.second, self.moe, self.dense)
        return tuple(dict.fromkeys(finding.option for finding in chosen if finding is not None))


def second_choice(found: Found) -> Finding | None:
    """The cheapest deployment that differs from the first in more than a setting."""

    def kind(finding: Finding) -> tuple[Any, ...]:
        design, prefill = finding.option.design, finding.option.prefill
        return (*design._replace(kv_dtype="", slots=0, overlap=""), prefill and (prefill.tp, prefill.attention_dp))

    met = [finding for finding in found.findings if finding.sized is not None]
    return next((finding for finding in met[1:] if kind(finding) != kind(met[0])), None)


def confidence(found: Found, doubted: Doubted) -> dict[str, Any]:
    """Bands of the recommended deployment's figures, and probabilities that the choice is right."""
    first = doubted.first
    if first.sized is None:
        return {}
    noises = [_noise(doubted, place) for place in range(1 if doubted.second is None else 2)]
    same = np.ones(len(DRAWS) + 1)
    which = _stream(found, "samples").integers(len(DRAWS) + 1, size=_NUM_DRAWS)
    costs: dict[Option, Floats] = {}
    for finding in (first, doubted.second, doubted.moe, doubted.dense):
        if finding is not None and finding.option not in costs:
            place = next((n for n, one in enumerate((first, doubted.second)) if one and one.option == finding.option), None)
            noise = same if place is None else noises[place]
            costs[finding.option] = _costs(found, finding, doubted.tables[finding.option], noise[which])
    mine = costs[first.option]
    low, high = _band_of(mine)
    slowness = _slowness(found, doubted.tables[first.option])
    answer: dict[str, Any] = {
        "cost_low": low,
        "cost_high": high,
        "fails": float(np.isinf(mine).mean()),
        "meets_targets": _meets(doubted, slowness, which),
        "headroom_low": min(doubted.room),
        "headroom_high": max(doubted.room),
        "beats_second": None,
        "cheaper_than_second": None,
        "second": None,
        "moe_beats_dense": None,
        "figures": _figures(found, doubted),
        "sources": _sources(found, doubted, noises[0]),
    }
    if doubted.second is not None:
        theirs = costs[doubted.second.option]
        answer |= {"beats_second": _share(mine <= theirs, mine, theirs), "cheaper_than_second": _share(mine < theirs, mine, theirs)}
        answer["second"] = text_of(found, doubted.second)
    if doubted.moe is not None and doubted.dense is not None:
        moe, dense = costs[doubted.moe.option], costs[doubted.dense.option]
        answer["moe_beats_dense"] = _share(moe < dense, moe, dense)
        answer["moe_costs_no_more_than_dense"] = _share(moe <= dense, moe, dense)
        ratio = (moe / dense)[np.isfinite(moe) & np.isfinite(dense) & (dense > 0)]
        answer["cost_moe_over_dense_low"], answer["cost_moe_over_dense_high"] = _band_of(ratio) if len(ratio) else (None, None)
    return answer


def _share(is_so: NDArray[np.bool_], mine: Floats, theirs: Floats) -> float:
    """Of the draws; where both fail neither is better."""
    return float((is_so & np.isfinite(mine)).mean() + (np.isinf(mine) & np.isinf(theirs)).mean() / 2)


def _stream(found: Found, name: str) -> np.random.Generator:
    return np.random.default_rng([found.question.seed, zlib.crc32(f"confidence {name}".encode())])


def _slowness(found: Found, table: Table) -> Floats:
    """``[n]`` draws of measured over predicted; deployments share the numbers of the terms that they share."""
    scale = math.sqrt(sum(share**2 for share in table.parts.values()))
    total = np.zeros(_NUM_DRAWS)
    for name, share in table.parts.items():
        total += share / scale * _stream(found, name).standard_normal(_NUM_DRAWS)
    return np.exp(table.middle + table.spread * total)


def _costs(found: Found, finding: Finding, table: Table, noise: Floats) -> Floats:
    """``[n]`` draws of the cost per hour; of GPUs where machines cost nothing. Infinite where nothing meets the targets."""
    machines = found.space.machines[finding.option.design.machines]
    gpus = gpus_at(table, machines.sizes, _slowness(found, table))
    is_free = all(gpu_hour(found.space, place) == 0 for place in range(len(found.space.machines)))
    price = 1.0 if is_free else gpu_hour(found.space, finding.option.design.machines)
    base = gpus_at(table, machines.sizes, np.ones(1))[0]
    whole = finding.sized.size / base if finding.sized is not None and np.isfinite(base) else 1.0
    return np.asarray(gpus * noise * whole * price)


def gpus_at(table: Table, sizes: tuple[int, ...], slower: Floats) -> Floats:
    """GPUs needed if steps take so many times as long: between what was tried, the next size there is. Never fewer if slower."""
    needed = np.maximum.accumulate(np.array([number or math.inf for number in table.gpus], dtype=np.float64))
    tried = np.log(table.slower)
    at = np.log(slower)
    known = np.isfinite(needed)
    if not known.any():
        return np.full(len(slower), np.inf)
    between = np.interp(at, tried[known], needed[known])
    held = np.array(sizes, dtype=np.float64)
    rounded = held[np.minimum(np.searchsorted(held, between * (1 - 1e-9)), len(held) - 1)]
    last = int(known.sum()) - 1
    limit = (tried[last] + tried[last + 1]) / 2 if last + 1 < len(tried) else math.inf
    return np.where(at <= limit, rounded, np.inf)


def _noise(doubted: Doubted, place: int) -> Floats:
    """``[1 + draws]`` GPUs needed with other samples over those with the one asked for; 1 where either meets no target."""
    option = (doubted.first, doubted.second)[place]
    table = doubted.tables[option.option] if option is not None else None
    base = table.gpus[table.slower.index(1.0)] if table is not None else 0
    return np.array([1.0, *((row["gpus"][place] / base if base and row["gpus"][place] else 1.0) for row in doubted.redrawn)])


def _meets(doubted: Doubted, slowness: Floats, which: NDArray[np.int64]) -> float:
    """Probability that the recommended size, as it is, meets all targets."""
    table = doubted.tables[doubted.first.option]
    grid = np.log([row["slower"] for row in doubted.slowed])
    base = next(row for row in doubted.slowed if row["slower"] == 1.0)["ratios"]
    kept = np.full(_NUM_DRAWS, True)
    score = (np.log(slowness) - table.middle) / table.spread
    for name in base:
        ratios = np.maximum.accumulate([max(row["ratios"][name], 1e-9) for row in doubted.slowed])
        drawn = np.interp(np.log(slowness), grid, np.log(ratios))
        samples = np.log([1.0, *(max(row["ratios"][name], 1e-9) / max(base[name], 1e-9) for row in doubted.redrawn)])
        if name.startswith("ttft"):
            drawn = np.maximum(drawn, math.log(max(base[name], 1e-9)) + _ttft(table, score))
        kept &= drawn + samples[which] <= 1e-9
    return float(kept.mean())


def _ttft(table: Table, score: Floats | float) -> Any:
    """Logarithm of measured over predicted time to first token, so many standard deviations off."""
    low, high = (math.log(edge) for edge in table.ttft_band)
    return (low + high) / 2 + (high - low) / 2 / _Z[-2] * score


def _figures(found: Found, doubted: Doubted) -> dict[str, dict[str, float]]:
    """80 % bands of what the recommended size does: the calibration's, widened by how other samples scatter."""
    table = doubted.tables[doubted.first.option]
    grid = [row["slower"] for row in doubted.slowed]
    edges = [min(range(len(grid)), key=lambda n, at=at: abs(grid[n] - at)) for at in table.band]  # type: ignore[misc]
    base = next(row for row in doubted.slowed if row["slower"] == 1.0)["measured"]
    figures = {}
    for name, value in base.items():
        ends = [doubted.slowed[edge]["measured"][name] for edge in edges]
        if name.startswith("ttft"):
            ends += [value * edge for edge in table.ttft_band]
        others = [row["measured"][name] for row in doubted.redrawn]
        scatter = -_Z[1] * float(np.std([value, *others]))
        below, above = value - min(value, *ends), max(value, *ends) - value
        figures[name] = {
            "value": value,
            "low": max(0.0, value - math.hypot(below, scatter)),
            "high": value + math.hypot(above, scatter),
        }
    return figures


def _sources(found: Found, doubted: Doubted, noise: Floats) -> list[dict[str, Any]]:
    table = doubted.tables[doubted.first.option]
    samples = f"{len(DRAWS)} other samples of requests and of experts' choices"
    if not found.traffic.trace.provenance.startswith("generated"):
        samples = f"{len(DRAWS)} other samples of experts' choices and of the trace's blocks, drawn with replacement"
    stretch = "" if is_whole(found.traffic) else ", on the busiest stretch of the traffic"
    return [
        {
            "name": "calibration, time per token",
            "low": table.band[0],
            "high": table.band[1],
            "text": f"Measured over predicted, 80 % of cases: {table.source}",
        },
        {
            "name": "calibration, time to first token",
            "low": table.ttft_band[0],
            "high": table.ttft_band[1],
            "text": "Measured over predicted, 80 % of cases, of the same points",
        },
        {
            "name": "samples",
            "low": float(noise.min()),
            "high": float(noise.max()),
            "text": f"GPUs needed with {samples}, over those with the sample asked for{stretch}",
        },
    ]


def _band_of(values: Floats) -> tuple[float | None, float | None]:
    """10th and 90th percentile, of values that were drawn; ``None`` where infinite."""
    low, high = (float(np.quantile(values, q, method=m)) for q, m in ((0.1, "lower"), (0.9, "higher")))  # type: ignore[call-overload]
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)
