"""``moesim calibrate cpu``: time the shards on this machine's processor, and write down what was
found.
"""

from __future__ import annotations

import datetime
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy.stats import gmean

from simulator.base.arrays import Floats
from simulator.base.machine import count_cores, name_machine
from simulator.base.progress import CountDone, Progress, show_nothing
from simulator.base.writing import toml_text
from simulator.calibration.host.fit import find_middle, find_spread, fit_exchange, fit_steps
from simulator.calibration.host.layers import Sample, collect, shapes
from simulator.calibration.host.measure import matrix_times, pruned_ratios, reference_seconds
from simulator.calibration.host.training import TrainingTimes, fit_training, time_training
from simulator.config.calibration import EngineFit
from simulator.config.execution import ExecutionSpec
from simulator.config.host import (
    Collectives,
    HostCalibration,
    KernelTables,
    MatrixTable,
    Pruned,
    Steps,
    Storage,
)
from simulator.config.sparsity import Block, Pruning, TwoFour, Unstructured
from simulator.runtime.layers.cached_experts import ExpertFile
from simulator.runtime.load import LoadMeter
from simulator.runtime.nodes import Nodes
from simulator.runtime.ray_backend import RayBackend

ROUNDS = 5
"""Rounds in which everything is timed, over the whole of a calibration: a moment in which the
machine is slow falls on a fifth of each thing at most, and the mean leaves it out."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Rows of the products that are timed: those of steps of one token to a long prompt."""
SIZES = (1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Weights of the matrices that are timed: those of models that a machine without GPU runs."""
WORKING_BYTES = (1 << 20, 1 << 23, 3 << 23, 3 << 24, 3 << 26)
"""1 MB lies in a core's own cache, 192 MB in none."""
_PRUNED_ROWS = ROWS[::2]
_MOST_WORK = 1 << 31
"""Multiply-adds beyond which a product is not timed but extrapolated from fewer rows."""
_PRUNED: tuple[Pruning, ...] = (
    *(Unstructured(kind="unstructured", sparsity=s) for s in (0.5, 0.8, 0.95)),
    TwoFour(kind="two_four"),
    *(Block(kind="block", sparsity=s) for s in (0.5, 0.8, 0.95)),
)


def default_ranks() -> list[int]:
    """Numbers of ranks to time: doublings up to the cores, and once beyond them."""
    cores = count_cores()
    return [*(1 << power for power in range(12) if 1 << power <= cores), 2 * cores]


def calibrate(nodes: Nodes, ranks: list[int], tick: Progress = show_nothing) -> HostCalibration:
    """Time everything in rounds, each on processes of its own; takes some minutes.

    Args:
        ranks: numbers of ranks to time collectives of; kernels are timed for those that have a core
            each.
    """
    cores = count_cores()
    source = (
        f"moesim calibrate cpu, {datetime.date.today().isoformat()}, {name_machine()}, "
        f"torch {torch.__version__}"
    )
    most = max((number for number in ranks if number <= cores), default=1)
    timings = [
        _Timing(number, has_cores=number <= cores, has_pruned=number == most)
        for number in sorted(set(ranks))
    ]
    done, total = 0, ROUNDS * sum(timing.num_parts for timing in timings)

    def report(parts: int) -> None:
        nonlocal done
        done += parts
        tick("timing this machine", done, total)

    report(0)
    read_rates = []
    with write_experts() as file:
        for turn in range(ROUNDS):
            for timing in timings:
                timing.time_round(nodes, turn, report)
            read_rates.append(time_reads(file, turn))
    alone = [timing for timing in timings if timing.has_cores]
    step_s = np.array([timing.overheads_s for timing in alone] or [[0.0]])
    return HostCalibration(
        title=f"This machine: {name_machine()}",
        machine=name_machine(),
        num_cores=cores,
        dtype="fp32",
        engine=EngineFit(
            kind="measured",
            source=source,
            spread=find_spread(step_s.T),
            step_s=float(find_middle(step_s.ravel())),
            sequence_s=0.0,
            layer_s=0.0,
        ),
        kernels=tuple(
            {
                cores // one.size: one.fit_kernels(cores // one.size, source) for one in alone
            }.values()
        ),
        collectives=tuple(one.fit_collectives(source) for one in timings if one.size > 1),
        pruned=tuple(pruned for one in alone for pruned in one.list_pruned(source)),
        storage=describe_storage(read_rates, source),
        others_share=round(max(share for one in timings for share in one.others), 3),
        notes=(
            "Times of one machine; a busy one gives wrong ones. "
            "moesim calibrate cpu writes this file anew."
        ),
    )


@dataclass
class _Timing:
    """Timings of ``size`` ranks, round by round. A round has processes of its own: where
    their memory happens to lie makes them faster or slower.
    """

    size: int
    has_cores: bool
    """Whether each has a core, so that kernels are timed."""
    has_pruned: bool
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    """Samples of every kind of moment."""
    paces: list[Floats] = field(default_factory=list)
    """Seconds of the reference on every rank, whenever it was timed."""
    overheads_s: list[float] = field(default_factory=list)
    """Seconds to start a step and hear of its end, of each round."""
    products: list[list[list[list[float]]]] = field(default_factory=list)
    """Times of products over the reference's, ``[working_bytes][sizes][rows]``, of each round."""
    training: list[TrainingTimes] = field(default_factory=list)
    pruned: list[list[Floats]] = field(default_factory=list)
    """Ratios by rows, of each round for each of ``_PRUNED``."""
    others: list[float] = field(default_factory=list)
    """Share of the cores that other programs took, of each round."""

    @property
    def num_parts(self) -> int:
        """Parts of a round, for progress."""
        products = len(WORKING_BYTES) + 1 if self.has_cores else 0
        return len(list(shapes())) + products + self.has_pruned

    def time_round(self, nodes: Nodes, turn: int, report: CountDone) -> None:
        """Time everything once."""
        backend = RayBackend(nodes, np.zeros(self.size, dtype=np.int64), ExecutionSpec())
        try:
            meter = LoadMeter(backend)
            self._run_layers(backend, turn, report)
            if self.has_cores:
                self.products.append(
                    [_time_products(backend, size, report) for size in WORKING_BYTES]
                )
                self.training.append(time_training(backend, self.size, turn))
                report(1)
            if self.has_pruned:
                self.pruned.append(
                    [
                        gmean(backend.apply(pruned_ratios, _PRUNED_ROWS, one, (2048, 256)), axis=0)
                        for one in _PRUNED
                    ]
                )
                report(1)
            self.others.append(meter.others_share())
        finally:
            backend.close()

    def _read_pace(self, backend: RayBackend) -> Floats:
        self.paces.append(np.array(backend.apply(reference_seconds)))
        return self.paces[-1]

    def _run_layers(self, backend: RayBackend, turn: int, report: CountDone) -> None:
        rng, overheads_s = np.random.default_rng(turn), []
        for shape in shapes():
            if shape.is_split and self.size == 1:
                report(1)
                continue
            job = shape.job(self.size, rng)
            backend.load(job)
            for warm_up, *steps in shape.every_kind(self.size, turn):
                before_R = self._read_pace(backend)
                backend.step(warm_up)
                runs = []
                for step in steps:
                    started_s = time.perf_counter()
                    run = backend.step(step)
                    elapsed_s = time.perf_counter() - started_s
                    ended_s = max(shard.moments[-1].end_s for shard in run)
                    inside_s = ended_s - min(shard.moments[0].start_s for shard in run)
                    overheads_s.append(elapsed_s - inside_s)
                    runs.append(run)
                pace_R = np.sqrt(before_R * self._read_pace(backend))
                for step, run in zip(steps, runs, strict=True):
                    collect(self.samples, shape, job, step, run, pace_R)
            report(1)
        self.overheads_s.append(statistics.median(overheads_s))

    @cached_property
    def reference_s(self) -> float:
        """Seconds of the reference, mean over the whole calibration: all else is told as it was
        while the reference took so long.
        """
        return float(gmean(np.array(self.paces), axis=None))

    def _list_samples(self, kind: str) -> list[Sample]:
        return [sample.at_pace(self.reference_s) for sample in self.samples[kind]]

    def fit_kernels(self, threads: int, source: str) -> KernelTables:
        """The tables of one rank's computation."""
        matrix = MatrixTable(
            kind="measured",
            source=source,
            spread=find_spread(self.products),
            rows=ROWS,
            sizes=SIZES,
            working_bytes=WORKING_BYTES,
            seconds=(self.reference_s * find_middle(self.products)).tolist(),
        )
        tables = _kernels(self._list_samples, matrix, threads, source)
        training = fit_training(self.training, matrix, source, self.reference_s)
        return tables.model_copy(update={"training": training, "reference_s": self.reference_s})

    def fit_collectives(self, source: str) -> Collectives:
        """The tables of exchanges between all ranks."""
        dispatch, combine, all_reduce = (
            fit_exchange(self._list_samples(name), self._list_samples(f"{name} wait"), source)
            for name in ("dispatch", "combine", "collective")
        )
        return Collectives(
            num_ranks=self.size, dispatch=dispatch, combine=combine, all_reduce=all_reduce
        )

    def list_pruned(self, source: str) -> Iterator[Pruned]:
        """Pruned products against whole ones, where they were timed."""
        for pruning, ratios in zip(_PRUNED, zip(*self.pruned, strict=True), strict=False):
            yield Pruned(
                kind="measured",
                source=source,
                spread=find_spread(ratios),
                pruning=pruning.kind,
                sparsity=pruning.sparsity,
                rows=_PRUNED_ROWS,
                ratio=tuple(find_middle(ratios).tolist()),
            )


def _time_products(backend: RayBackend, working: int, report: CountDone) -> list[list[float]]:
    """Times of products over the reference's, mean over ranks, ``[sizes][rows]``."""
    by_size = []
    for size in SIZES:
        timed = tuple(rows for rows in ROWS if rows * size <= _MOST_WORK)
        found = np.mean(backend.apply(matrix_times, timed, size, working), axis=0).tolist()
        by_size.append(found + [found[-1] * rows / timed[-1] for rows in ROWS[len(timed) :]])
    report(1)
    return by_size


def _kernels(
    samples: Callable[[str], list[Sample]], matrix: MatrixTable, threads: int, source: str
) -> KernelTables:
    def steps(kind: str, *names: str) -> Steps:
        return fit_steps(samples(kind), matrix, names, source)

    prompt = steps("prompt", "values", "heads", "flops")
    mixer = {name: prompt.seconds[name] for name in ("call", "values", "heads")}
    decode = fit_steps(samples("decode"), matrix, ("bytes",), source, known=mixer)
    free = {"call": 0.0, "choices": 0.0, "bytes": 0.0}
    nothing = Steps(kind="fitted", source="one rank packs nothing", seconds=free)
    alone = {"call": 0.0, "flops": prompt.seconds["flops"]}
    return KernelTables(
        num_threads=threads,
        matrix=matrix,
        mixer=prompt.model_copy(update={"seconds": mixer}),
        prompt=prompt.model_copy(update={"seconds": alone}),
        decode=decode,
        ffn=steps("ffn", "values", "hidden"),
        router=steps("router", "values", "scores"),
        experts=steps("experts", "touched", "values", "hidden"),
        pack=steps("pack", "choices", "bytes") if samples("pack") else nothing,
        unpack=steps("unpack", "bytes") if samples("unpack") else nothing,
    )


def calibration_toml(calibration: HostCalibration) -> str:
    """The text of a calibration's file, as the simulator reads it."""
    table = calibration.model_dump(exclude_none=True)
    return toml_text(table, "Written by moesim calibrate cpu. Times are seconds.")


# Timing of this machine's disk, by reads of single experts from a file of them.


_EXPERT_BYTES = 1 << 22
"""Bytes of a read: an expert of a model that a machine without GPU runs."""
_EXPERTS = 64
"""Experts of the file, 256 MiB in all."""


@contextmanager
def write_experts() -> Iterator[ExpertFile]:
    """Write a file of experts, which is removed on leaving."""
    file, rng = ExpertFile(_EXPERTS, _EXPERT_BYTES), np.random.default_rng(0)
    try:
        for expert in range(_EXPERTS):
            weights = rng.integers(0, 256, _EXPERT_BYTES, dtype=np.uint8)
            file.write(expert, torch.from_numpy(weights))
        file.flush()
        yield file
    finally:
        file.close()


def time_reads(file: ExpertFile, turn: int) -> float:
    """Bytes per second of reads of all experts, one after the other, past the system's cache, in
    another order each turn.
    """
    before_s = file.read_s
    for expert in np.random.default_rng(turn).permutation(_EXPERTS).tolist():
        file.read(expert)
    return _EXPERTS * _EXPERT_BYTES / (file.read_s - before_s)


def describe_storage(rates: Sequence[float], source: str) -> Storage:
    """The storage whose reads were timed, a rate a round."""
    return Storage(
        kind="measured",
        source=source,
        spread=find_spread(rates),
        bytes_per_s=float(f"{np.median(rates):.3g}"),
        free_bytes=float(shutil.disk_usage(tempfile.gettempdir()).free),
    )
