"""Findings of ``moesim sparsity`` in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from simulator.results.sparsity import MeasuredSpeeds, SparsityResults, SpeedCurve

_BUSY = 0.1
"""Share of the cores from which other programs make timings doubtful."""


def tell_headline(results: SparsityResults) -> str:
    """Tell from where bytes fall, and from where time does."""
    found = [(one.break_even, one.format) for one in results.storage if one.break_even is not None]
    text = "A pruned matrix takes fewer bytes in no format"
    if found:
        (low, first), (high, last) = min(found), max(found)
        text = (
            f"A pruned matrix takes fewer bytes from {low:.0%} of its weights gone ({first}) to "
            f"{high:.0%} ({last})"
        )
    curves = [one for one in results.speeds if one.was_measured]
    seen = [(one.seen_from, _name(one)) for one in curves if one.seen_from is not None]
    if not seen:
        return f"{text}; it is faster in none of {len(curves)} measured cases."
    (least, first), (most, last) = min(seen), max(seen)
    slower = len(curves) - len(seen)
    return (
        f"{text}; it is seen faster from {least:.0%} ({first}) to {most:.0%} ({last}), and in "
        f"{slower} of {len(curves)} measured cases nowhere."
    )


def _name(curve: SpeedCurve) -> str:
    return f"{curve.machine}, {curve.kernels}, {curve.tokens_text}"


def list_findings(results: SparsityResults) -> list[str]:
    """List what else the numbers say."""
    return list(_list_findings(results))


def _list_findings(results: SparsityResults) -> Iterator[str]:
    yield from _tell_batch(results)
    compared = [point for point in results.published if point.predicted is not None]
    ratios = [(point.predicted or 1.0) / point.speed_up for point in compared]
    if ratios:
        inside = sum((point.low or 0) <= point.speed_up <= (point.high or 0) for point in compared)
        yield (
            f"Of {len(results.published)} published speeds {len(compared)} are of kernels with a "
            "calibration that was fitted on others: predictions are "
            f"{min(ratios):.2f} to {max(ratios):.2f} times them, "
            f"{statistics.median(abs(ratio - 1) for ratio in ratios):.0%} off at the median, and "
            f"{inside} of {len(compared)} lie within the band."
        )
    if results.measured is not None:
        yield _tell_measured(results.measured)
    bitmask = next(one for one in results.data.formats if one[0] == "bitmask")
    best = min(results.data.formats, key=lambda one: one[1])
    yield (
        f"Data of which {results.data.density:.0%} is not zero takes "
        f"{best[1] / results.data.whole_bytes:.2f} times its bytes as {best[0]}, the least; a "
        f"bitmask saves bytes up to {bitmask[2]:.0%} not zero."
    )


def _tell_batch(results: SparsityResults) -> Iterator[str]:
    """Tell of the kernels whose break-even, as measured, hangs most on the tokens of a product."""
    by_kernels: dict[tuple[str, str], list[SpeedCurve]] = {}
    for one in results.speeds:
        if one.was_measured and len(one.sparsities) > 1:
            by_kernels.setdefault((one.machine, one.kernels), []).append(one)
    pairs = [(curves[0], curves[-1]) for curves in by_kernels.values() if len(curves) > 1]
    if not pairs:
        return
    first, last = max(pairs, key=_measure_shift)
    yield (
        f"The break-even is a property of kernels and batch. {first.machine}: {first.kernels} "
        f"{_tell_speed(first)} with {first.tokens_text}, and {_tell_speed(last)} with "
        f"{last.tokens_text}."
    )


def _measure_shift(pair: tuple[SpeedCurve, SpeedCurve]) -> float:
    """Distance between the break-evens of two curves; one that is never reached counts as 1."""
    first, last = (1.0 if one.break_even is None else one.break_even for one in pair)
    return abs(first - last)


def _tell_speed(curve: SpeedCurve) -> str:
    if len(curve.sparsities) == 1:
        return f"is {curve.speed_ups[0]:.2f} times as fast"
    if curve.break_even is None:
        return "is never faster"
    return f"is faster from {curve.break_even_text} gone"


def _tell_measured(measured: MeasuredSpeeds) -> str:
    curves, parts = measured.curves, []
    for kernels in dict.fromkeys(one.kernels for one in curves):
        own = [one for one in curves if one.kernels == kernels]
        parts.append(
            f"{kernels} {', '.join(f'{_tell_speed(o)} with {o.tokens_text}' for o in own)}"
        )
    busy = ""
    if measured.others_share > _BUSY:
        busy = (
            f" Other programs took {measured.others_share:.0%} of its cores meanwhile: clear what "
            "is kept (moesim cache clear) and measure again on a quiet machine."
        )
    return f"Measured on {measured.machine}: {'; '.join(parts)}.{busy}"
