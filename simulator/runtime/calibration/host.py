"""``moesim calibrate cpu``: time the shards on this machine's processor, and write down what was found."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from simulator.runtime.calibration.fit import fit_steps
from simulator.runtime.calibration.layers import REPEATS, Samples, collect, shapes
from simulator.runtime.calibration.measure import exchange_moments, matrix_seconds, pruned_ratios
from simulator.runtime.nodes import Nodes
from simulator.runtime.ray_backend import RayBackend
from simulator.spec.calibration import EngineFit
from simulator.spec.execution import ExecutionSpec
from simulator.spec.host import Collectives, ExchangeTable, HostCalibration, KernelTables, MatrixTable, Pruned, Steps
from simulator.spec.pruning import Block, Pruning, TwoFour, Unstructured

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
SIZES = (1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
WORKING_BYTES = (1 << 20, 1 << 23, 1 << 25, 3 << 26)
"""1 MB lies in a core's own cache, 192 MB in none."""
NUM_BYTES = (0, 1 << 12, 1 << 15, 1 << 18, 1 << 20, 1 << 22)
_EXCHANGES = 40
_MOST_WORK = 1 << 32
"""Multiply-adds beyond which a product is not timed but extrapolated from fewer rows."""
_PRUNED: tuple[Pruning, ...] = (
    *(Unstructured(kind="unstructured", sparsity=s) for s in (0.5, 0.8, 0.95)),
    TwoFour(kind="two_four"),
    *(Block(kind="block", sparsity=s) for s in (0.5, 0.8, 0.95)),
)
Tick = Callable[[str, int, int | None], None]


def machine() -> str:
    """The processor and its cores, as a name to tell machines apart by."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


def default_ranks() -> list[int]:
    """Numbers of ranks to time: doublings up to the cores, and once beyond them."""
    cores = os.cpu_count() or 1
    return [1 << power for power in range(12) if 1 << power <= cores] + [2 * cores if cores > 1 else 2]


def calibrate(nodes: Nodes, ranks: list[int], tick: Tick = lambda *_: None) -> HostCalibration:
    """Time everything; takes about a minute.

    Args:
        ranks: numbers of ranks to time collectives of; kernels are timed for those that have a core each.
    """
    cores = os.cpu_count() or 1
    source = f"moesim calibrate cpu, {datetime.date.today().isoformat()}, {machine()}, torch {torch.__version__}"
    kernels: dict[int, KernelTables] = {}
    collectives, overheads_s, pruned = [], [], []
    done, total = 0, len(ranks) + sum(1 for r in ranks if r <= cores) + 1
    for num_ranks in sorted(set(ranks)):
        tick("timing this machine", done, total)
        backend = RayBackend(nodes, np.zeros(num_ranks, dtype=np.int64), ExecutionSpec())
        try:
            if num_ranks <= cores:
                tables, overhead_s = _kernels(backend, source)
                kernels.setdefault(tables.num_threads, tables)
                overheads_s.append(overhead_s)
                done += 1
                tick("timing this machine", done, total)
            if num_ranks > 1:
                collectives.append(_collectives(backend, source))
            if num_ranks == max(r for r in ranks if r <= cores):
                pruned = [_pruned(backend, pruning, source) for pruning in _PRUNED]
        finally:
            backend.close()
        done += 1
    tick("timing this machine", total, total)
    engine = EngineFit(kind="measured", source=source, step_s=statistics.median(overheads_s), sequence_s=0.0, layer_s=0.0)
    return HostCalibration(
        title=f"This machine: {machine()}",
        machine=machine(),
        num_cores=cores,
        dtype="fp32",
        engine=engine,
        kernels=tuple(kernels.values()),
        collectives=tuple(collectives),
        pruned=tuple(pruned),
        notes="Times of one machine; a busy one gives wrong ones. moesim calibrate cpu writes this file anew.",
    )


def _kernels(backend: RayBackend, source: str) -> tuple[KernelTables, float]:
    num_ranks = backend.size
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    matrix = _matrix(backend, source)
    samples = {name: Samples() for name in ("prompt", "decode", "ffn", "router", "experts", "pack", "unpack")}
    overheads_s = []
    rng = np.random.default_rng(0)
    for shape in shapes():
        job = shape.job(num_ranks, rng)
        backend.load(job)
        for number in range(len(shape.steps)):
            step = shape.step(number, num_ranks)
            runs = []
            for _ in range(REPEATS + 1):
                started_s = time.perf_counter()
                run = backend.step(step)
                elapsed_s = time.perf_counter() - started_s
                runs.append(run)
                inside_s = max(r.moments[-1].end_s for r in run) - min(r.moments[0].start_s for r in run)
                overheads_s.append(elapsed_s - inside_s)
            collect(samples, shape, job, step, runs[1:])

    def steps(kind: str, *names: str) -> Steps:
        return fit_steps(samples[kind], matrix, names, source)

    decode, prompt = steps("decode", "values", "bytes"), steps("prompt", "values", "flops")
    none = Steps(kind="fitted", source="one rank packs nothing", seconds={"call": 0.0, "choices": 0.0, "bytes": 0.0})
    return (
        KernelTables(
            num_threads=threads,
            matrix=matrix,
            mixer=Steps(kind="fitted", source=source, seconds={"call": prompt.seconds["call"], "values": prompt.seconds["values"]}),
            prompt=_without_values(prompt, "flops", 0.0),
            decode=_without_values(decode, "bytes", max(0.0, decode.seconds["call"] - prompt.seconds["call"])),
            ffn=steps("ffn", "values", "hidden"),
            router=steps("router", "values", "scores"),
            experts=steps("experts", "touched", "values", "hidden"),
            pack=steps("pack", "choices", "bytes") if samples["pack"].seconds else none,
            unpack=steps("unpack", "bytes") if samples["unpack"].seconds else none,
        ),
        statistics.median(overheads_s),
    )


def _without_values(fit: Steps, name: str, call_s: float) -> Steps:
    """What looking back adds to the mixer's own small kernels."""
    return Steps(kind="fitted", source=fit.source, median_error=fit.median_error, seconds={"call": call_s, name: fit.seconds[name]})


def _matrix(backend: RayBackend, source: str) -> MatrixTable:
    seconds = []
    for working in WORKING_BYTES:
        by_size = []
        for size in SIZES:
            timed = tuple(rows for rows in ROWS if rows * size <= _MOST_WORK)
            found = np.mean(backend.apply(matrix_seconds, timed, size, working), axis=0).tolist()
            found += [found[-1] * rows / timed[-1] for rows in ROWS[len(timed) :]]
            by_size.append(tuple(found))
        seconds.append(tuple(by_size))
    return MatrixTable(kind="measured", source=source, rows=ROWS, sizes=SIZES, working_bytes=WORKING_BYTES, seconds=tuple(seconds))


def _collectives(backend: RayBackend, source: str) -> Collectives:
    def table(operation: str) -> ExchangeTable:
        seconds = list(_exchange_seconds(backend, operation))
        # More bytes never take less time; where a measurement says so, it is noise.
        return ExchangeTable(
            kind="measured", source=source, num_bytes=NUM_BYTES, seconds=tuple(np.maximum.accumulate(seconds).tolist())
        )

    return Collectives(num_ranks=backend.size, dispatch=table("dispatch"), combine=table("combine"), all_reduce=table("all_reduce"))


def _exchange_seconds(backend: RayBackend, operation: str) -> Iterator[float]:
    for num_bytes in NUM_BYTES:
        moments_RN2 = np.array(backend.apply(exchange_moments, operation, num_bytes, _EXCHANGES))
        met_N = moments_RN2[:, :, 0].max(axis=0)
        # As a step's phases count it: from the last rank's coming to each rank's end, mean over ranks.
        yield float(np.median((moments_RN2[:, :, 1] - met_N).mean(axis=0)))


def _pruned(backend: RayBackend, pruning: Pruning, source: str) -> Pruned:
    rows = ROWS[::2]
    ratio = np.exp(np.mean(np.log(backend.apply(pruned_ratios, rows, pruning, (2048, 256))), axis=0))
    return Pruned(
        kind="measured", source=source, pruning=pruning.kind, sparsity=pruning.sparsity, rows=rows, ratio=tuple(ratio.tolist())
    )
