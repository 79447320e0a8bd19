"""Timing of training steps: passes of small models over forward passes that keep nothing, and the
optimizer.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.stats import gmean

from simulator.calibration.host.fit import fit_steps
from simulator.calibration.host.layers import Sample, Shape
from simulator.config.host import MatrixTable, TrainingTables
from simulator.runtime.backend import Backend
from simulator.runtime.job import Step
from simulator.runtime.timeline import Moment
from simulator.runtime.training.job import TrainingJob
from simulator.runtime.training.rank import begin_training, train_step

REPEATS = 8
"""Steps of each kind behind the first, which warms up; the median counts."""
SHAPES = (
    Shape(128, 256, 8, 2, ((4, 32, 0), (8, 128, 0))),
    Shape(256, 512, 8, 2, ((4, 32, 0), (8, 128, 0))),
    Shape(128, 512, steps=((4, 32, 0), (8, 128, 0))),
    Shape(256, 1024, steps=((4, 32, 0), (8, 128, 0))),
)
"""Models, and the sequences and tokens of a rank, that are timed."""

PhaseSeconds = dict[str, float]


def time_training(
    backend: Backend, num_ranks: int, matrix: MatrixTable, source: str
) -> TrainingTables:
    """Time training steps of :data:`SHAPES` on ranks that each have as much to do."""
    ratios: dict[str, dict[str, list[float]]] = {
        "forward": defaultdict(list),
        "backward": defaultdict(list),
    }
    updates: list[Sample] = []
    for shape in SHAPES:
        job = shape.job(num_ranks, np.random.default_rng(0))
        for sequences, tokens, _ in shape.steps:
            backend.load(job)
            served: list[list[Moment]] = []
            trained = TrainingJob(job, num_ranks, sequences * num_ranks, sequences, tokens)
            sizes = backend.apply(begin_training, trained)
            ways: dict[str, list[list[Moment]]] = {"forward": [], "backward": []}
            for number in range(REPEATS + 1):  # in turns, so that both meet what else goes on
                served += _serve(backend, number, sequences * num_ranks, tokens)
                for size, rank in zip(sizes, backend.apply(train_step, number, False), strict=True):
                    last = rank.moments[-1]
                    seconds = last.end_s - last.start_s
                    if number:
                        updates.append(Sample(seconds, 0.0, (), {"parameters": float(size)}))
                    for name, moments in zip(ways, _split(rank.moments), strict=True):
                        ways[name] += [moments] if number else []
            alone = _find_median(served)
            for name, found in ways.items():
                for phase, seconds in _find_median(found).items():
                    ratios[name][phase].append(seconds / alone[phase])
    means = {
        name: {phase: float(gmean(found)) for phase, found in by_phase.items()}
        for name, by_phase in ratios.items()
    }
    errors = [
        abs(one / means[name][phase] - 1)
        for name, by_phase in ratios.items()
        for phase, found in by_phase.items()
        for one in found
    ]
    return TrainingTables(
        kind="measured",
        source=source,
        median_error=statistics.median(errors),
        forward=means["forward"],
        backward=means["backward"],
        optimizer=fit_steps(updates, matrix, ("parameters",), source),
    )


def _serve(
    backend: Backend, number: int, num_sequences: int, tokens: int
) -> Iterator[list[Moment]]:
    """Moments of a forward pass that keeps nothing, by rank; of the first, which warms up, none."""
    step = Step(number, num_sequences, tokens, 0, offset=number * num_sequences * tokens)
    ranks = backend.step(step)
    yield from (rank.moments for rank in ranks if number)


def _split(moments: list[Moment]) -> tuple[list[Moment], list[Moment]]:
    """Split a step of one micro-batch into its forward and its backward pass: the loss, behind the
    last layer, ends the forward one.
    """
    outside = [place for place, moment in enumerate(moments) if moment.layer < 0]
    return moments[: outside[1] + 1], moments[outside[1] + 1 :]


def _find_median(passes: Iterable[list[Moment]]) -> PhaseSeconds:
    """Median over passes of the seconds that a rank computes in all layers, by phase."""
    found: dict[str, list[float]] = defaultdict(list)
    for moments in passes:
        own: dict[str, float] = defaultdict(float)
        for moment in moments:
            if moment.layer >= 0 and not moment.is_together:
                own[moment.phase] += moment.end_s - moment.start_s
        for phase, seconds in own.items():
            found[phase].append(seconds)
    return {phase: statistics.median(seconds) for phase, seconds in found.items()}
