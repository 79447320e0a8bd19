"""ServeGen client models: a folder, or a tar archive, of ``chunk-N-trace.csv`` and
``chunk-N-dataset.json``, one pair a client.

A trace line is ``window_start_s, rate_per_s, cv, pattern, p1, p2`` (no header; pattern Gamma,
Weibull or empty). A data set maps window starts to probability tables of lengths, written as text:
``{"0": {"input_tokens": "{45: 0.0097, ...}", ...}}``. https://github.com/alibaba/ServeGen (arXiv
2505.09999), Apache-2.0. These are models fitted to production traffic, not requests: reading one
draws requests from them.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.reading import read_text
from simulator.workload.renewal import fill_window
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._rows import Rows

_MEMBER = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)$")
_SEED = zlib.crc32(b"servegen")
"""Seed of reading, which has no seed of its own and must give the same requests each time."""
_MOST_DRAWN = 50_000_000
"""Most requests of all clients together; the largest published day has 30 million."""


class _Window(NamedTuple):
    start_s: float
    rate_per_s: float
    cv: float
    pattern: Literal["gamma", "weibull"]


class _Pdf(NamedTuple):
    lengths: NDArray[np.int64]
    cumulative: NDArray[np.float64]

    def draw(self, num_requests: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return self.lengths[
            np.searchsorted(self.cumulative, rng.random(num_requests), side="right")
        ]


class ServeGen(Frozen):
    """All clients over the whole day, the same requests every time; input and output lengths are
    drawn independently.
    """

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether a folder holds, or an archive begins with, files of the two kinds."""
        if path.is_dir():
            return any(_MEMBER.fullmatch(child.name) for child in path.iterdir())
        return (
            head[257:262] == b"ustar"
            and re.search(rb"chunk-\d+-(trace\.csv|dataset\.json)\x00", head) is not None
        )

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Draw the requests of every client and merge them."""
        texts = _texts(path, data)
        clients = sorted({client for client, _ in texts})
        expected = 0.0
        times: list[NDArray[np.float64]] = []
        inputs: list[NDArray[np.int64]] = []
        outputs: list[NDArray[np.int64]] = []
        for client in clients:
            for kind in ("trace.csv", "dataset.json"):
                if (client, kind) not in texts:
                    raise UserError(f"{path}: client {client} has no chunk-{client}-{kind}")
            windows = _windows(f"{path}, chunk-{client}-trace.csv", texts[client, "trace.csv"])
            pdfs = _pdfs(f"{path}, chunk-{client}-dataset.json", texts[client, "dataset.json"])
            expected += _expected_requests(windows)
            if not expected <= _MOST_DRAWN:
                raise UserError(
                    f"{path}: the rates of client {client} and those before it mean "
                    f"{expected:.3g} requests, and {_MOST_DRAWN:,} are the most; lower them"
                )
            _draw_client(
                windows, pdfs, np.random.default_rng([_SEED, client]), times, inputs, outputs
            )
        merged = np.concatenate([np.zeros(0), *times])
        order = np.argsort(merged, kind="stable")
        columns = {
            "input_tokens": np.concatenate([np.zeros(0, np.int64), *inputs])[order],
            "output_tokens": np.concatenate([np.zeros(0, np.int64), *outputs])[order],
        }
        note = f"the fitted rates and lengths of {len(clients)} clients with a fixed seed"
        return RawRequests(
            path,
            "requests drawn from ServeGen clients",
            Rows(columns, lambda row: f"drawn request {row + 1}"),
            ("time", *columns),
            merged[order],
            drops_empty=True,
            notes=(f"drawn from {note}",),
        ).make_trace()


def _texts(path: Path, data: bytes) -> dict[tuple[int, str], str]:
    found: dict[tuple[int, str], str] = {}
    if path.is_dir():
        for child in path.iterdir():
            if match := _MEMBER.fullmatch(child.name):
                found[int(match[1]), match[2]] = read_text(child)
        return found
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                if member.size > len(data):  # a sparse member is as long as its header says
                    raise UserError(f"{path}: {member.name} claims more than the archive holds")
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and (match := _MEMBER.search(member.name)):
                    found[int(match[1]), match[2]] = content.read().decode("utf-8")
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a readable tar archive: {error}") from None
    return found


def _windows(where: str, text: str) -> list[_Window]:
    windows: list[_Window] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        fields = [part.strip() for part in line.split(",")]
        try:
            start_s, rate_per_s, cv = (float(part) for part in fields[:3])
            pattern = fields[3].lower()
        except (ValueError, IndexError):
            raise UserError(
                f"{where}, line {number}: must be window_start_s, rate, cv, pattern, "
                f"..., got '{line[:60]}'"
            ) from None
        is_right = (
            np.isfinite([start_s, rate_per_s, cv]).all()
            and rate_per_s >= 0
            and pattern in ("", "gamma", "weibull")
        )
        if not is_right or (rate_per_s > 0 and pattern and not 0.001 <= cv <= 1000):
            raise UserError(
                f"{where}, line {number}: rate must be at least 0, cv in 0.001 .. "
                f"1000 and the pattern Gamma or Weibull, got '{line[:60]}'"
            )
        # No pattern: too few requests in the window for a fit, so they arrive as Poisson ones
        # would.
        windows.append(
            _Window(
                start_s,
                rate_per_s,
                cv if pattern else 1.0,
                "weibull" if pattern == "weibull" else "gamma",
            )
        )
    if any(b.start_s <= a.start_s for a, b in itertools.pairwise(windows)):
        raise UserError(f"{where}: window starts must rise")
    return windows


def _pdfs(where: str, text: str) -> list[tuple[float, _Pdf, _Pdf]]:
    try:
        tables: dict[str, dict[str, str]] = json.loads(text)
        # An empty table belongs to hours without requests; the table before it serves any that the
        # rates still ask for.
        pdfs = [
            (float(start), _pdf(table["input_tokens"]), _pdf(table["output_tokens"]))
            for start, table in tables.items()
            if table["input_tokens"].strip("{} ") and table["output_tokens"].strip("{} ")
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{where}: must map window starts to input_tokens and output_tokens tables of length: "
            f"probability ({error})"
        ) from None
    return sorted(pdfs, key=lambda pdf: pdf[0])


def _pdf(text: str) -> _Pdf:
    """Read the table in ``"{45: 0.25, 46: 0.75}"`` as numbers, since evaluating megabytes of text
    is slow and unsafe.
    """
    pairs = np.array(text.strip().strip("{}").replace(":", ",").split(","), np.float64).reshape(
        -1, 2
    )
    if not np.isfinite(pairs).all() or (pairs < 0).any() or pairs[:, 1].sum() <= 0:
        raise ValueError("lengths and probabilities must be at least 0")
    cumulative = np.cumsum(pairs[:, 1])
    return _Pdf(pairs[:, 0].astype(np.int64), cumulative / cumulative[-1])


def _durations_s(windows: list[_Window]) -> list[float]:
    """Seconds of each window: up to the next, the last as long as the first."""
    starts = [window.start_s for window in windows]
    between = [after - before for before, after in itertools.pairwise(starts)]
    return [*between, between[0] if between else 600.0][: len(windows)]


def _expected_requests(windows: list[_Window]) -> float:
    """Expected number of requests in a client's windows."""
    lasting = zip(windows, _durations_s(windows), strict=True)
    return sum(window.rate_per_s * duration_s for window, duration_s in lasting)


def _draw_client(
    windows: list[_Window],
    pdfs: list[tuple[float, _Pdf, _Pdf]],
    rng: np.random.Generator,
    times: list[NDArray[np.float64]],
    inputs: list[NDArray[np.int64]],
    outputs: list[NDArray[np.int64]],
) -> None:
    """Add one client's requests. A window's lengths come from the last table that starts no later
    than it.
    """
    starts = np.array([start for start, _, _ in pdfs])
    for window, duration_s in zip(windows, _durations_s(windows), strict=True):
        if not window.rate_per_s or not pdfs:
            continue
        drawn = window.start_s + fill_window(
            window.rate_per_s * duration_s, duration_s, window.pattern, window.cv, rng
        )
        _, input_pdf, output_pdf = pdfs[
            max(0, int(np.searchsorted(starts, window.start_s, side="right")) - 1)
        ]
        times.append(drawn)
        inputs.append(input_pdf.draw(len(drawn), rng))
        outputs.append(output_pdf.draw(len(drawn), rng))
