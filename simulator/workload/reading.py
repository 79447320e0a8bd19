"""Which format a file is of, judged by its content; every format is asked."""

from __future__ import annotations

from pathlib import Path

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.workload.bounds import check_bounds
from simulator.workload.traces import RequestTrace, TraceFormat
from simulator.workload.unpacking import csv_header, head_of, json_keys


def read_trace(path: Path) -> RequestTrace:
    """Read a request trace of any known format.

    Raises:
        UserError: if the file is missing, of no known format or of several, or if its format finds
            it wrong, or it cannot be served (:func:`~simulator.workload.bounds.check_bounds`).
    """
    path = Path(path)
    head = head_of(path)
    formats: dict[str, TraceFormat] = {
        kind: plugins.build("traces", {"kind": kind}, str(path))
        for kind in plugins.available("traces")
    }
    fitting = [kind for kind, reader in formats.items() if reader.recognises(path, head)]
    if not fitting:
        raise UserError(
            f"{path}: not a request trace of a known format; {_seen(path, head)}; "
            f"known are {', '.join(formats)}"
        )
    if len(fitting) > 1:
        raise UserError(f"{path}: could be any of {', '.join(fitting)}; {_seen(path, head)}")
    return check_bounds(formats[fitting[0]].read(path), str(path))


def _seen(path: Path, head: bytes) -> str:
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
