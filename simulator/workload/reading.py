"""Reading of trace files, whose format is found by their content; every format is asked."""

from __future__ import annotations

from pathlib import Path

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.base.reading import refuse_damage
from simulator.workload.bounds import check_bounds
from simulator.workload.traces import RequestTrace, TraceFormat
from simulator.workload.traces.request_log import names_in
from simulator.workload.unpacking import csv_header, head_of, json_keys, read_unpacked

ANY_LOG = "request_log"
"""Format that is asked when no other fits: the others know the units of their source."""


def read_trace(path: Path, *, strict: bool = False) -> RequestTrace:
    """Read a request trace of any known format.

    Args:
        strict: refuse a file in which rows have to be left out or sorted.

    Raises:
        UserError: if the file is missing, of no known format or of several, or if its format finds
            it wrong, or it cannot be served (:func:`~simulator.workload.bounds.check_bounds`).
    """
    path = Path(path)
    data = read_unpacked(path)
    with refuse_damage(path, "a request trace"):
        trace = _format_of(path, head_of(data)).read(path, data)
    if strict and trace.repairs:
        raise UserError(f"{path}, {trace.repairs[0]}")
    return check_bounds(trace, str(path))


def _format_of(path: Path, head: bytes) -> TraceFormat:
    formats: dict[str, TraceFormat] = {
        kind: plugins.build("traces", {"kind": kind}, str(path))
        for kind in plugins.available("traces")
    }
    any_log = formats.pop(ANY_LOG)
    fitting = [kind for kind, reader in formats.items() if reader.recognises(path, head)]
    if len(fitting) > 1:
        raise UserError(f"{path}: could be any of {', '.join(fitting)}; {_describe(path, head)}")
    if fitting:
        return formats[fitting[0]]
    if any_log.recognises(path, head):
        return any_log
    names = "" if path.is_dir() else f" (found are {names_in(path, head)})"
    layouts = "; ".join(f"{kind}: {reader.layout}" for kind, reader in formats.items())
    raise UserError(
        f"{path}: not a request trace of a known format; {_describe(path, head)}; a log needs "
        f"columns of arrival, prompt and output tokens{names}; other formats are {layouts}"
    )


def _describe(path: Path, head: bytes) -> str:
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir())
        return f"it is a folder of {len(names)} entries ({_some(names)})"
    keys = json_keys(head)
    if keys:
        return f"it holds JSON with the keys {_some(sorted(keys))}"
    columns = csv_header(head)
    if columns:
        return f"its first line reads as the columns {_some([repr(name[:30]) for name in columns])}"
    return f"it begins with the bytes {head[:8]!r}"


def _some(words: list[str]) -> str:
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "") if words else "none"
