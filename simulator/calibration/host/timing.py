"""``moesim calibrate cpu``: time the shards on this machine's processor, and write down what was
found.
"""

from __future__ import annotations

import datetime
import os
import statistics
import time
from collections import defaultdict

import numpy as np
import torch
from scipy.stats import gmean

from simulator.base.machine import name_machine
from simulator.base.progress import CountDone, Progress, show_nothing
from simulator.base.writing import toml_text
from simulator.calibration.host.fit import fit_exchange, fit_steps
from simulator.calibration.host.layers import REPEATS, Sample, collect, shapes
from simulator.calibration.host.measure import matrix_seconds, pruned_ratios
from simulator.calibration.host.storage import time_storage
from simulator.calibration.host.training import time_training
from simulator.config.calibration import EngineFit
from simulator.config.execution import ExecutionSpec
from simulator.config.host import (
    Collectives,
    HostCalibration,
    KernelTables,
    MatrixTable,
    Pruned,
    Steps,
)
from simulator.config.pruning import Block, Pruning, TwoFour, Unstructured
from simulator.runtime.load import LoadMeter
from simulator.runtime.nodes import Nodes
from simulator.runtime.ray_backend import RayBackend

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Rows of the products that are timed: those of steps of one token to a long prompt."""
SIZES = (1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Weights of the matrices that are timed: those of models that a machine without GPU runs."""
WORKING_BYTES = (1 << 20, 1 << 23, 3 << 23, 3 << 24, 3 << 26)
"""1 MB lies in a core's own cache, 192 MB in none."""
_MOST_WORK = 1 << 32
"""Multiply-adds beyond which a product is not timed but extrapolated from fewer rows."""
_PRUNED: tuple[Pruning, ...] = (
    *(Unstructured(kind="unstructured", sparsity=s) for s in (0.5, 0.8, 0.95)),
    TwoFour(kind="two_four"),
    *(Block(kind="block", sparsity=s) for s in (0.5, 0.8, 0.95)),
)


def default_ranks() -> list[int]:
    """Numbers of ranks to time: doublings up to the cores, and once beyond them."""
    cores = os.cpu_count() or 1
    return [*(1 << power for power in range(12) if 1 << power <= cores), 2 * cores]


def calibrate(nodes: Nodes, ranks: list[int], tick: Progress = show_nothing) -> HostCalibration:
    """Time everything; takes about a minute and a half on two cores.

    Args:
        ranks: numbers of ranks to time collectives of; kernels are timed for those that have a core
            each.
    """
    cores = os.cpu_count() or 1
    source = (
        f"moesim calibrate cpu, {datetime.date.today().isoformat()}, {name_machine()}, "
        f"torch {torch.__version__}"
    )
    kernels: dict[int, KernelTables] = {}
    collectives, overheads_s, pruned, others = [], [], [], []
    most = max((number for number in ranks if number <= cores), default=1)
    total = sum(_num_parts(number, cores, most) for number in set(ranks))
    done = 0

    def report(parts: int) -> None:
        nonlocal done
        done += parts
        tick("timing this machine", done, total)

    report(0)
    for num_ranks in sorted(set(ranks)):
        backend = RayBackend(nodes, np.zeros(num_ranks, dtype=np.int64), ExecutionSpec())
        try:
            meter = LoadMeter(backend)
            samples, overhead_s = _run_layers(backend, report)
            others.append(meter.others_share())
            if num_ranks <= cores:
                overheads_s.append(overhead_s)
                matrix, threads = _matrix(backend, source, report), cores // num_ranks
                tables = _kernels(samples, matrix, threads, source)
                training = time_training(backend, num_ranks, matrix, source)
                report(1)
                kernels.setdefault(threads, tables.model_copy(update={"training": training}))
            if num_ranks > 1:
                collectives.append(_collectives(samples, num_ranks, source))
            if num_ranks == most:
                pruned = [_time_pruned(backend, pruning, source) for pruning in _PRUNED]
                report(1)
        finally:
            backend.close()
    step_s = statistics.median(overheads_s) if overheads_s else 0.0
    return HostCalibration(
        title=f"This machine: {name_machine()}",
        machine=name_machine(),
        num_cores=cores,
        dtype="fp32",
        engine=EngineFit(
            kind="measured", source=source, step_s=step_s, sequence_s=0.0, layer_s=0.0
        ),
        kernels=tuple(kernels.values()),
        collectives=tuple(collectives),
        pruned=tuple(pruned),
        storage=time_storage(source),
        others_share=round(max(others, default=0.0), 3),
        notes=(
            "Times of one machine; a busy one gives wrong ones. "
            "moesim calibrate cpu writes this file anew."
        ),
    )


def _num_parts(num_ranks: int, cores: int, most: int) -> int:
    return (
        len(list(shapes()))
        + (len(WORKING_BYTES) + 1 if num_ranks <= cores else 0)
        + (num_ranks == most)
    )


def _run_layers(backend: RayBackend, report: CountDone) -> tuple[dict[str, list[Sample]], float]:
    """Samples of every kind of moment, and seconds to start a step and hear of its end."""
    samples: dict[str, list[Sample]] = defaultdict(list)
    overheads_s = []
    rng = np.random.default_rng(0)
    for shape in shapes():
        if shape.is_split and backend.size == 1:
            report(1)
            continue
        job = shape.job(backend.size, rng)
        backend.load(job)
        for step in shape.every_step(backend.size):
            started_s = time.perf_counter()
            run = backend.step(step)
            elapsed_s = time.perf_counter() - started_s
            if step.number % (REPEATS + 1):
                ended_s = max(shard.moments[-1].end_s for shard in run)
                inside_s = ended_s - min(shard.moments[0].start_s for shard in run)
                overheads_s.append(elapsed_s - inside_s)
                collect(samples, shape, job, step, run)
        report(1)
    return samples, statistics.median(overheads_s)


def _kernels(
    samples: dict[str, list[Sample]], matrix: MatrixTable, threads: int, source: str
) -> KernelTables:
    def steps(kind: str, *names: str) -> Steps:
        return fit_steps(samples[kind], matrix, names, source)

    prompt = steps("prompt", "values", "heads", "flops")
    mixer = {name: prompt.seconds[name] for name in ("call", "values", "heads")}
    decode = fit_steps(samples["decode"], matrix, ("bytes",), source, known=mixer)
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
        pack=steps("pack", "choices", "bytes") if samples["pack"] else nothing,
        unpack=steps("unpack", "bytes") if samples["unpack"] else nothing,
    )


def _matrix(backend: RayBackend, source: str, report: CountDone) -> MatrixTable:
    seconds = []
    for working in WORKING_BYTES:
        by_size = []
        for size in SIZES:
            timed = tuple(rows for rows in ROWS if rows * size <= _MOST_WORK)
            found = np.mean(backend.apply(matrix_seconds, timed, size, working), axis=0).tolist()
            found += [found[-1] * rows / timed[-1] for rows in ROWS[len(timed) :]]
            by_size.append(tuple(found))
        seconds.append(tuple(by_size))
        report(1)
    return MatrixTable(
        kind="measured",
        source=source,
        rows=ROWS,
        sizes=SIZES,
        working_bytes=WORKING_BYTES,
        seconds=tuple(seconds),
    )


def _collectives(samples: dict[str, list[Sample]], num_ranks: int, source: str) -> Collectives:
    dispatch, combine, all_reduce = (
        fit_exchange(samples[name], samples[f"{name} wait"], source)
        for name in ("dispatch", "combine", "collective")
    )
    return Collectives(
        num_ranks=num_ranks, dispatch=dispatch, combine=combine, all_reduce=all_reduce
    )


def _time_pruned(backend: RayBackend, pruning: Pruning, source: str) -> Pruned:
    rows = ROWS[::2]
    ratio = gmean(backend.apply(pruned_ratios, rows, pruning, (2048, 256)), axis=0)
    return Pruned(
        kind="measured",
        source=source,
        pruning=pruning.kind,
        sparsity=pruning.sparsity,
        rows=rows,
        ratio=tuple(ratio.tolist()),
    )


def calibration_toml(calibration: HostCalibration) -> str:
    """The text of a calibration's file, as the simulator reads it."""
    table = calibration.model_dump(exclude_none=True)
    return toml_text(table, "Written by moesim calibrate cpu. Times are seconds.")
