"""Sparse and pruned experts on a machine: results, their folder, sentences."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pydantic import TypeAdapter

from simulator.base.findings import Finding
from simulator.base.formats import TIMES
from simulator.config.sparsity import PublishedLoss, PublishedReduction
from simulator.results.provenance import Provenance
from simulator.results.results_folder import ResultsFolder, TextTable, Verdict, make_verdict


@dataclass(frozen=True)
class StorageCurve:
    """Bytes of a matrix in one format by sparsity, over those of the whole matrix."""

    format: str
    """Format for people: ``csr, 16-bit``."""
    sparsities: tuple[float, ...]
    shares: tuple[float, ...]
    """Bytes over those of the whole matrix."""
    break_even: float | None
    """Sparsity from which the format takes fewer bytes; ``None`` where it never does, or has one
    sparsity alone."""


@dataclass(frozen=True)
class SpeedCurve:
    """Time with the whole matrix over time with the pruned one by sparsity, on one machine."""

    machine: str
    """Machine for people."""
    device: str
    """``cpu`` or ``gpu``."""
    kernels: str
    """Kernels, as calibrations name them."""
    dtype: str
    tokens: int
    """Tokens of the product."""
    kind: str
    """Whether its prices are fitted, published, measured or assumed."""
    source: str
    sparsities: tuple[float, ...]
    speed_ups: tuple[float, ...]
    break_even: float | None
    """Least sparsity at which the pruned product is as fast; ``None`` where none is."""
    sparsity_range: tuple[float, float] | None
    """Sparsities that were measured; ``None`` where nobody says."""
    rows_range: tuple[float, float] | None
    """Tokens that were measured; ``None`` where nobody says."""

    def is_measured(self, sparsity: float) -> bool:
        """Whether the product lies within what its calibration was measured for."""
        low, high = self.sparsity_range or (0.0, 1.0)
        least, most = self.rows_range or (0.0, float("inf"))
        return low <= sparsity <= high and least <= self.tokens <= most

    @property
    def tokens_text(self) -> str:
        """Tokens for people."""
        return "1 token" if self.tokens == 1 else f"{self.tokens:,} tokens"

    @property
    def was_measured(self) -> bool:
        """Whether any product of the curve lies within what was measured."""
        return self.kind != "assumed" and any(map(self.is_measured, self.sparsities))

    @property
    def seen_from(self) -> float | None:
        """Least sparsity within what was measured at which the pruned product is as fast; ``None``
        where none is.
        """
        seen = zip(self.sparsities, self.speed_ups, strict=True)
        return next((at for at, up in seen if up >= 1 and self.is_measured(at)), None)

    def find_speed(self, sparsity: float) -> float | None:
        """Speed-up at a sparsity of the curve; ``None`` at others."""
        return dict(zip(self.sparsities, self.speed_ups, strict=True)).get(sparsity)

    @property
    def break_even_text(self) -> str:
        """Break-even for people: ``51.1 %``, ``50 % or less``, ``never``; empty where the kernels
        have one sparsity alone.
        """
        if len(self.sparsities) == 1:
            return ""
        if self.break_even is None:
            return "never"
        is_least = 0 < self.break_even == self.sparsities[0]
        return f"{self.break_even:.0%} or less" if is_least else f"{self.break_even:.1%}"

    @property
    def basis(self) -> str:
        """Basis of the break-even for people: ``fitted``, ``published, extrapolated``."""
        at = self.sparsities if self.break_even is None else (self.break_even,)
        return self.kind if any(map(self.is_measured, at)) else f"{self.kind}, extrapolated"


@dataclass(frozen=True)
class PublishedPoint:
    """A published speed, with what is predicted for it where that is independent of it."""

    title: str
    device: str
    """``cpu`` or ``gpu``."""
    sparsity: float
    speed_up: float
    tokens: int | None
    rests: str
    """``compared`` with a prediction, ``fitted`` where a calibration rests on it, or ``shown``."""
    conditions: str
    source: str
    machine: str | None = None
    """Machine for people, as curves name it; ``None`` where there is no calibration of it."""
    predicted: float | None = None
    low: float | None = None
    """Least speed-up by the calibration's band."""
    high: float | None = None
    """Most speed-up by the calibration's band."""


@dataclass(frozen=True)
class MeasuredSpeeds:
    """Speeds of the runtime's pruned layers on this machine, against whole matrices."""

    machine: str
    """Processor and cores."""
    made: str
    """Date, and version of PyTorch."""
    out_features: int
    in_features: int
    others_share: float
    """Share of the cores that other programs took meanwhile."""
    curves: tuple[SpeedCurve, ...]


@dataclass(frozen=True)
class SparseData:
    """Activations or inputs with zeros, in every format."""

    rows: int
    columns: int
    dtype: str
    density: float
    """Share of the values that are not zero."""
    whole_bytes: float
    formats: tuple[tuple[str, float, float], ...]
    """Format, bytes, and density below which it takes fewer bytes than the whole; 0 where it never
    does."""


@dataclass(frozen=True)
class SparsityResults:
    """Everything that ``moesim sparsity`` tells."""

    out_features: int
    in_features: int
    dtype: str
    storage: tuple[StorageCurve, ...]
    speeds: tuple[SpeedCurve, ...]
    published: tuple[PublishedPoint, ...]
    losses: tuple[PublishedLoss, ...]
    reductions: tuple[PublishedReduction, ...]
    data: SparseData
    measured: MeasuredSpeeds | None = None
    """Speeds measured on this machine; ``None`` where nobody asked."""


_RESULTS = TypeAdapter(SparsityResults)
_BUSY = 0.1
"""Share of the cores from which other programs make timings doubtful."""


def find_sparsity(results: SparsityResults) -> Iterator[Finding]:
    """Find from where bytes fall and from where time does, and what else the numbers say."""
    fewer = [(one.break_even, one.format) for one in results.storage if one.break_even is not None]
    curves = [one for one in results.speeds if one.was_measured]
    faster = [
        (one.seen_from, f"{one.machine}, {one.kernels}, {one.tokens_text}")
        for one in curves
        if one.seen_from is not None
    ]
    yield Finding(
        "sparsity.headline",
        fewer=[min(fewer), max(fewer)] if fewer else [],
        faster=[min(faster), max(faster)] if faster else [],
        curves=len(curves),
        slower=len(curves) - len(faster),
    )
    yield from _find_batch(results)
    yield from _compare_published(results)
    if results.measured is not None:
        yield _find_measured(results.measured)
    formats, whole_bytes = results.data.formats, results.data.whole_bytes
    best = min(formats, key=lambda one: one[1])
    yield Finding(
        "sparsity.data",
        density=results.data.density,
        best=best[0],
        share=best[1] / whole_bytes,
        bitmask=next(density for name, _, density in formats if name == "bitmask"),
    )


def _compare_published(results: SparsityResults) -> Iterator[Finding]:
    """Compare predictions with the published speeds that no calibration rests on."""
    compared = [point for point in results.published if point.predicted is not None]
    ratios = [(point.predicted or 1.0) / point.speed_up for point in compared]
    if ratios:
        yield Finding(
            "sparsity.published",
            points=len(results.published),
            compared=len(compared),
            low=min(ratios),
            high=max(ratios),
            error=statistics.median(abs(ratio - 1) for ratio in ratios),
            inside=sum((one.low or 0) <= one.speed_up <= (one.high or 0) for one in compared),
        )


def _find_batch(results: SparsityResults) -> Iterator[Finding]:
    """Find the kernels whose break-even, as measured, depends most on the tokens of a product."""
    by_kernels: dict[tuple[str, str], list[SpeedCurve]] = {}
    for one in results.speeds:
        if one.was_measured and len(one.sparsities) > 1:
            by_kernels.setdefault((one.machine, one.kernels), []).append(one)
    pairs = [(curves[0], curves[-1]) for curves in by_kernels.values() if len(curves) > 1]
    if pairs:
        first, last = max(pairs, key=_measure_shift)
        yield Finding("sparsity.batch", curve=first, speeds=[_find_speed(first), _find_speed(last)])


def _measure_shift(pair: tuple[SpeedCurve, SpeedCurve]) -> float:
    """Distance between the break-evens of two curves; one that is never reached counts as 1."""
    first, last = (1.0 if one.break_even is None else one.break_even for one in pair)
    return abs(first - last)


def _find_speed(curve: SpeedCurve) -> Finding:
    """Find from where a curve is faster."""
    return Finding("sparsity.speed", curve=curve)


def _find_measured(measured: MeasuredSpeeds) -> Finding:
    kernels: dict[str, list[Finding]] = {}
    for one in measured.curves:
        kernels.setdefault(one.kernels, []).append(_find_speed(one))
    share = measured.others_share
    return Finding(
        "sparsity.measured",
        machine=measured.machine,
        kernels=kernels,
        busy=share if share > _BUSY else None,
    )


@dataclass(frozen=True)
class SparsityFolder(ResultsFolder):
    """Folder of ``moesim sparsity``, whose results are in ``run.json``."""

    writer = "moesim sparsity"

    @classmethod
    def make(cls, results: SparsityResults, made: Provenance) -> SparsityFolder:
        """Make the folder of some results."""
        return cls({"sparsity": _RESULTS.dump_python(results), **made.describe()})

    @cached_property
    def results(self) -> SparsityResults:
        """Everything that is told."""
        return _RESULTS.validate_python(self.run["sparsity"], strict=False)

    @property
    def verdict(self) -> Verdict:
        """Headline, and further sentences."""
        return make_verdict(find_sparsity(self.results))

    def list_tables(self) -> list[TextTable]:
        """Bytes by format, and speeds by machine and kernels."""
        found = self.results
        storage = [["Format", "Bytes at 50 %", "at 75 %", "at 90 %", "Fewer bytes from"]]
        for one in found.storage:
            shares = [f"{share:.4g}" for share in (one.shares[50:51] or one.shares)]
            shares += [f"{one.shares[at]:.4g}" if len(one.shares) > 1 else "" for at in (75, 90)]
            least = "never" if one.break_even is None else f"{one.break_even:.1%}"
            storage.append([one.format, *shares, least if len(one.shares) > 1 else "always half"])
        titles = ["Machine, kernels, tokens", "Speed at 50 %", "at 75 %", "at 90 %"]
        speeds = [[*titles, "As fast from", "Rests on"]]
        for curve in (*found.speeds, *(found.measured.curves if found.measured else ())):
            ups = [curve.find_speed(at) for at in (0.5, 0.75, 0.9)]
            cells = ["" if up is None else f"{up:.2f}{TIMES}" for up in ups]
            name = f"{curve.machine}, {curve.kernels}, {curve.dtype}, {curve.tokens:,}"
            speeds.append([name, *cells, curve.break_even_text, curve.basis])
        return [TextTable("Bytes by format", storage), TextTable("Break-even of time", speeds)]
