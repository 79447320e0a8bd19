"""Timing of training steps: passes of small models over forward passes that keep nothing, and the
optimizer.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from simulator.calibration.host.fit import find_spread, fit_steps
from simulator.calibration.host.layers import Sample, Shape, find_computed_s
from simulator.calibration.host.measure import reference_seconds
from simulator.config.host import MatrixTable, TrainingTables
from simulator.runtime.backend import Backend
from simulator.runtime.job import Step
from simulator.runtime.timeline import Moment
from simulator.runtime.training.job import TrainingJob
from simulator.runtime.training.rank import begin_training, train_step

_REPEATS = 1
"""Steps of each kind in a round, behind one that warms up."""
SHAPES = (
    Shape(128, 256, 8, 2, ((4, 32, 0), (8, 128, 0))),
    Shape(256, 512, 8, 2, ((4, 32, 0), (8, 128, 0))),
    Shape(128, 512, steps=((4, 32, 0), (8, 128, 0))),
    Shape(256, 1024, steps=((4, 32, 0), (8, 128, 0))),
)
"""Models, and the sequences and tokens of a rank, that are timed."""

PhaseSeconds = dict[str, float]


class TrainingTimes(NamedTuple):
    """Times of training steps in a round."""

    ratios: dict[str, dict[str, list[float]]]
    """Seconds over those of a forward pass that keeps nothing, ``forward`` and ``backward``, by
    phase: of each model and batch."""
    updates: list[Sample]
    """Steps of the optimizer."""


def time_training(backend: Backend, num_ranks: int, turn: int) -> TrainingTimes:
    """Time training steps of :data:`SHAPES` on ranks that each have as much to do, in one round of
    a calibration: the first step of each kind warms up.
    """
    times = TrainingTimes({"forward": defaultdict(list), "backward": defaultdict(list)}, [])
    for shape in SHAPES:
        job = shape.job(num_ranks, np.random.default_rng(0))
        for sequences, tokens, _ in shape.steps:
            backend.load(job)
            served: list[list[Moment]] = []
            trained = TrainingJob(job, num_ranks, sequences * num_ranks, sequences, tokens)
            sizes = backend.apply(begin_training, trained)
            ways: dict[str, list[list[Moment]]] = {"forward": [], "backward": []}
            pace_R = backend.apply(reference_seconds)
            for repeat in range(_REPEATS + 1):  # in turns, so that both meet what else goes on
                number = turn * (_REPEATS + 1) + repeat
                alone = _serve(backend, number, sequences * num_ranks, tokens)
                ranks = backend.apply(train_step, number, False)
                if repeat == 0:
                    continue
                served += alone
                for size, rank, pace_s in zip(sizes, ranks, pace_R, strict=True):
                    seconds = find_computed_s(rank.moments[-1], num_ranks)
                    amounts = {"parameters": float(size)}
                    times.updates.append(Sample(seconds, 0.0, (), amounts, turn, pace_s))
                    for name, moments in zip(ways, _split(rank.moments), strict=True):
                        ways[name].append(moments)
            served_s = _find_median(served, num_ranks)
            for name, found in ways.items():
                for phase, seconds in _find_median(found, num_ranks).items():
                    times.ratios[name][phase].append(seconds / served_s[phase])
    return times


def fit_training(
    rounds: Sequence[TrainingTimes], matrix: MatrixTable, source: str, reference_s: float
) -> TrainingTables:
    """The tables of training steps by what rounds timed: geometric means over models and batches of
    the median ratio of all rounds; the optimizer as while the reference takes ``reference_s``.
    """
    logs = {
        (name, phase): np.log([times.ratios[name][phase] for times in rounds])  # [round][step]
        for name, by_phase in rounds[0].ratios.items()
        for phase in by_phase
    }
    means: dict[str, dict[str, float]] = {"forward": {}, "backward": {}}
    errors = []
    for (name, phase), found in logs.items():
        middle = float(np.median(found, axis=0).mean())
        means[name][phase] = math.exp(middle)
        errors += np.abs(np.expm1(found - middle)).ravel().tolist()
    return TrainingTables(
        kind="measured",
        source=source,
        median_error=statistics.median(errors),
        spread=find_spread(np.exp(np.concatenate(list(logs.values()), 1))),
        forward=means["forward"],
        backward=means["backward"],
        optimizer=fit_steps(
            [update.at_pace(reference_s) for times in rounds for update in times.updates],
            matrix,
            ("parameters",),
            source,
        ),
    )


def _serve(backend: Backend, number: int, num_sequences: int, tokens: int) -> list[list[Moment]]:
    """Moments of a forward pass that keeps nothing, by rank."""
    step = Step(number, num_sequences, tokens, 0, offset=number * num_sequences * tokens)
    return [rank.moments for rank in backend.step(step)]


def _split(moments: list[Moment]) -> tuple[list[Moment], list[Moment]]:
    """Split a step of one micro-batch into its forward and its backward pass: the loss, behind the
    last layer, ends the forward one.
    """
    outside = [place for place, moment in enumerate(moments) if moment.layer < 0]
    return moments[: outside[1] + 1], moments[outside[1] + 1 :]


def _find_median(passes: Iterable[list[Moment]], num_ranks: int) -> PhaseSeconds:
    """Median over passes of the seconds that a rank computes in all layers, by phase."""
    found: dict[str, list[float]] = defaultdict(list)
    for moments in passes:
        own: dict[str, float] = defaultdict(float)
        for moment in moments:
            if moment.layer >= 0 and not moment.is_together:
                own[moment.phase] += find_computed_s(moment, num_ranks)
        for phase, seconds in own.items():
            found[phase].append(seconds)
    return {phase: statistics.median(seconds) for phase, seconds in found.items()}
