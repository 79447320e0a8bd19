"""Collectives inside one fast domain: NCCL's, and the all-reduces that serving engines bring along.

Two kinds of table are read, told apart by their columns. Both are priced as the simulator prices
them, each library by itself: the simulator then takes the faster of the two for an all-reduce.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.frozen import Frozen
from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration.collective import CollectiveFit, passes_of
from simulator.validation import Answers, Measure, require
from simulator.validation.error_bands import Band
from simulator.validation.extrapolation import Doubt, of_hardware, outside_of, settle
from simulator.validation.hardware import accelerator_name, calibrated
from simulator.validation.sizes import MOST_RANKS, numbers, refusals
from simulator.validation.traffic import cluster_of

_NCCL = ("gpu", "op_name", "nccl_dtype", "num_gpus", "message_elements")
_CUSTOM = ("gpu", "kernel_source", "allreduce_dtype", "num_gpus", "message_size")
_BYTES = {
    "half": 2.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "float": 4.0,
    "float32": 4.0,
    "int8": 1.0,
    "fp8": 1.0,
}
_OWNERS = ("trtllm", "sglang", "vllm")
_LIBRARIES = ("nccl", *_OWNERS)
"""Whose operations were measured."""
NEWER_SGLANG = (0, 5, 11)
"""SGLang's kernel changed between 0.5.10 and 0.5.14: it starts in half the time."""


class Rows(NamedTuple):
    """Rows of a table that one fit prices."""

    places: NDArray[np.intp]
    gpu: str
    accelerator: str | None
    engine: str
    entry: str
    """In the calibration's table ``collective``."""
    operation: str
    is_eager: bool
    num_ranks: NDArray[np.float64]
    num_bytes: NDArray[np.float64]
    wrong: NDArray[np.object_]
    """Why a row's numbers are none of a message, or ``""``."""

    def seconds(
        self, fit: CollectiveFit, accelerator: AcceleratorSpec, port_bytes_per_s: float
    ) -> NDArray[np.float64]:
        """Time of each row."""
        start_s, carry_s = fit.parts_s(
            self.num_bytes, self.num_ranks, passes_of(self.operation), port_bytes_per_s
        )
        total = start_s + carry_s
        return (
            fit.eagerly_s(total, self.num_bytes, accelerator.memory_bytes_per_s)
            if self.is_eager
            else np.asarray(total)
        )


class Collective(Frozen):
    """All-reduce, all-gather, reduce-scatter and all-to-all of equal parts."""

    columns: ClassVar[tuple[str, ...]] = ("gpu", "num_gpus")
    layouts: ClassVar[tuple[tuple[str, ...], ...]] = (_NCCL, _CUSTOM)
    measures: ClassVar[tuple[Measure, ...]] = (Measure("latency", "latency_ms", 1e-3),)

    def answer(self, table: pd.DataFrame) -> Answers:
        answers = Answers.unsupported(len(table), len(self.measures))
        for rows in rows_of(table):
            _answer(answers, rows)
        return answers


def _answer(answers: Answers, rows: Rows) -> None:
    found = calibrated(rows.gpu, rows.engine)
    cluster = cluster_of(rows.accelerator) if rows.accelerator else None
    library = rows.engine if rows.entry.startswith("custom") else "nccl"
    for place in rows.places:
        answers.group[place] = (
            f"{rows.gpu} {library} {rows.operation}{' eager' if rows.is_eager else ''}"
        )
    fit = found[1].collective.get(rows.entry) if found else None
    why = ""
    if found is None or cluster is None:
        why = f"no calibrated accelerator '{rows.gpu}'"
    elif fit is None:
        known = sorted(name for name in found[1].collective if not name.startswith("custom"))
        why = f"no constants for the operation '{rows.entry}'; known: {', '.join(known)}"
    if found is None or cluster is None or fit is None:
        for place in rows.places:
            answers.status[place] = f"unsupported: {why}"
        return
    accelerator = found[0]
    refused = _refused(rows, accelerator, cluster.gpus_per_node)
    seconds = rows.seconds(fit, accelerator, cluster.scale_up.bytes_per_s)
    doubts = of_hardware(fit, accelerator, f"{rows.entry.replace('_', ' ')} operations")
    if fit.kind != "assumed" and library not in _LIBRARIES:
        doubts.append(Doubt(f"no measured all-reduce of '{library}', vLLM's was"))
    statuses, wider = settle(
        len(seconds), doubts, outside_of(fit, ranks=rows.num_ranks, bytes=rows.num_bytes)
    )
    low, high = Band.of(fit).spread(seconds, wider)
    answered = refused == ""
    for values, into in ((seconds, answers.seconds), (low, answers.low), (high, answers.high)):
        into[rows.places, 0] = np.where(answered, values, np.nan)
    for place, status, reason in zip(rows.places, statuses, refused, strict=True):
        answers.status[place] = f"unsupported: {reason}" if reason else status


def _refused(rows: Rows, accelerator: AcceleratorSpec, gpus_per_node: int) -> NDArray[np.object_]:
    """Why each row has no answer, or ``""``."""
    refused = rows.wrong.copy()
    for row in np.flatnonzero(refused == ""):
        if rows.num_ranks[row] > gpus_per_node:
            refused[row] = f"{rows.num_ranks[row]:.0f} GPUs are not in one fast domain"
        elif rows.num_bytes[row] > accelerator.memory_bytes:
            refused[row] = (
                f"a message of {rows.num_bytes[row]:.3g} bytes does not fit into the GPU's memory"
            )
    return refused


def rows_of(table: pd.DataFrame) -> Iterator[Rows]:
    """The rows of a table by GPU, library and operation.

    Raises:
        UserError: if it is none of the tables that are known.
    """
    custom = "kernel_source" in table.columns or "message_size" in table.columns
    require(table, _CUSTOM if custom else _NCCL, "collective table")
    if custom:
        table = table.rename(
            columns={"message_size": "message_elements", "allreduce_dtype": "nccl_dtype"}
        )
        names = ["gpu", "kernel_source", "engine", "engine_ver"]
        table = table.assign(**{name: "" for name in names if name not in table.columns})
    else:
        names = ["gpu", "op_name"]
    keys = pd.Series(
        list(zip(*(table[name].map(str) for name in names), strict=True)), dtype=object
    )
    codes, found = pd.factorize(keys)
    read = numbers(table, ("message_elements", "num_gpus"))
    wrong = refusals(read, {"num_gpus": 2.0}, {"message_elements": np.inf, "num_gpus": MOST_RANKS})
    names_of_formats = table["nccl_dtype"].map(str)
    for row in np.flatnonzero(~names_of_formats.isin(list(_BYTES)) & (wrong == "")):
        wrong[row] = f"no number format '{names_of_formats.iloc[row]}'; known: {', '.join(_BYTES)}"
    sizes = read["message_elements"] * names_of_formats.map(
        lambda name: _BYTES.get(name, np.nan)
    ).to_numpy(dtype=float)
    ranks = read["num_gpus"]
    for code, key in enumerate(found):
        places = np.flatnonzero(codes == code)
        bad = wrong[places]
        size, count = (
            np.where(bad == "", sizes[places], 1.0),
            np.where(bad == "", ranks[places], 2.0),
        )
        name = accelerator_name(key[0])
        if custom:
            engine, entry = _library(*key[1:])
            is_eager = "eager" in key[1].lower()
            yield Rows(
                places, key[0], name, engine, entry, "all_reduce", is_eager, count, size, bad
            )
        else:
            yield Rows(places, key[0], name, "any", key[1], key[1], False, count, size, bad)


def _library(kernel: str, engine: str, release: str) -> tuple[str, str]:
    """Whose kernel it is, whatever engine calls it, and its entry."""
    lower = kernel.lower()
    owner = next((name for name in _OWNERS if name in lower), engine or "any")
    is_older = owner == "sglang" and _release(release) < NEWER_SGLANG
    return owner, "custom_all_reduce_older" if is_older else "custom_all_reduce"


def _release(text: str) -> tuple[int, ...]:
    """The leading numbers of a release; a release without any is the newest.

    >>> _release("0.5.6.post2"), _release("")
    ((0, 5, 6), (99,))
    """
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else (99,)
