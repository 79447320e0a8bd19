"""Logs of requests of any origin: CSV, Parquet or JSON lines with columns for the arrival, the
prompt's tokens and the output's tokens, under the names that logs use, and perhaps ``domain`` and
``request_id``; rows of an HTTP status other than 200 are left out. Further columns of CSV and
Parquet are attributes, such as ``priority``.

Times are ISO 8601, or seconds, milliseconds, microseconds or nanoseconds, and a note says as what
they were read. Without times there are lengths only. Asked last: a file in a format of its own is
read by that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simulator.base.errors import UserError, check_known
from simulator.base.frozen import Frozen
from simulator.base.text import inline_toml
from simulator.config.workload import LogColumns
from simulator.workload.traces import RequestTrace
from simulator.workload.traces._check import RawRequests
from simulator.workload.traces._columns import read_json_lines
from simulator.workload.traces._rows import Kind, Rows, hold_codes
from simulator.workload.traces._tables import (
    column_names,
    list_others,
    read_others,
    read_table,
    tell_left_out,
)
from simulator.workload.traces._times import RULE, read_times, split_unit
from simulator.workload.unpacking import head_of, json_rows


class RequestLog(Frozen):
    """Arrivals and token counts, found by the names of their columns."""

    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether there are columns of prompt and of output tokens."""
        names = find_names(list_columns(path, head))
        return names.num_input is not None and names.num_output is not None

    def read(self, path: Path, data: bytes) -> RequestTrace:
        """Read the whole log."""
        return read_log(path, data, LogColumns())


def read_log(path: Path, data: bytes, given: LogColumns) -> RequestTrace:
    """Read a whole log.

    Args:
        given: columns that the user names; the others are found by the names that logs use.

    Raises:
        UserError: as :meth:`TraceFormat.read`, and if the log has no column of a given name, or
            none of prompt or of output tokens.
    """
    listed = list_columns(path, head_of(data))
    for what, name in given:
        if name is not None:
            check_known(name, listed, f"{path}: columns.{what}: has no column")
    arrival, num_input, num_output, status = find_names(listed)
    arrival = given.arrival or arrival
    num_input, num_output = given.input or num_input, given.output or num_output
    if num_input is None or num_output is None:
        raise UserError(
            f"{path}: has no columns of prompt and output tokens; {suggest(path, listed)}"
        )
    kinds: dict[str, Kind] = {num_input: "int", num_output: "int"}
    if arrival is not None:
        kinds[arrival] = "time"
    if status is not None:
        kinds[status] = "status"
    is_json = data.lstrip().startswith(b"{")
    names = () if is_json else column_names(path, head_of(data))
    kinds |= {name: "text" for name in ("domain", "request_id") if name in names}
    others = list_others(names, kinds)
    rows = read_json_lines(data, kinds) if is_json else read_table(path, data, kinds, others)
    if status in rows.columns:
        rows = rows.leave_refused(status)
        if not (is_json or rows.refused or hold_codes(rows.columns[status].tolist())):
            others.append(status)
    if rows.refused and not len(rows.columns[num_input]):
        raise UserError(
            f"{path}: no request was served, all rows have an HTTP status other than 200 "
            f"({_count_codes(rows)}); leave that column out to take them as served"
        )
    time_s, note = None, "no column of arrival times: lengths only"
    if arrival is not None:
        times = rows.columns[arrival]
        time_s, note = read_times(times, arrival)
        is_no_time = np.isnan(time_s)
        rows = rows.leave_out(is_no_time, lambda row: f"{arrival} {RULE}, got '{times[row]}'")
        time_s = time_s[~is_no_time]
    attributes = read_others(rows, others)
    return RawRequests(
        path,
        "request log",
        rows,
        (arrival or "", num_input, num_output),
        time_s,
        domain=rows.columns.get("domain"),
        request_ids=rows.columns.get("request_id"),
        attributes=attributes,
        notes=(
            f"prompt tokens from {num_input}, output tokens from {num_output}; {note}",
            *_tell_refused(rows),
            *tell_left_out(others, attributes),
        ),
    ).make_trace()


def _tell_refused(rows: Rows) -> Iterator[str]:
    """Note on the requests that were not served, by their HTTP status."""
    if rows.refused:
        count = len(rows.refused)
        yield f"{count} rows with an HTTP status other than 200 left out: {_count_codes(rows)}"


def _count_codes(rows: Rows) -> str:
    counts = sorted(Counter(rows.refused).items())
    return ", ".join(f"{count} of {code}" for code, count in counts)


def list_columns(path: Path, head: bytes) -> list[str]:
    """List the names of a file's columns; the values of a JSON line may lie in a table
    (``usage.prompt_tokens``).
    """
    objects = json_rows(head)[:1]
    if not objects:
        return list(column_names(path, head))
    inner = [
        f"{key}.{name}"
        for key, value in objects[0].items()
        if isinstance(value, dict)
        for name in value
    ]
    return [*objects[0], *inner]


def suggest(path: Path, columns: list[str]) -> str:
    """Say how a workload names the columns of a log, in a line to copy."""
    source = {"file": str(path), "columns": guess_names(columns)}
    return f"say in the workload which column holds what: requests = {inline_toml(source)}"


# Names in logs of the three columns that a request trace needs, and of the HTTP status, written
# without capitals, spaces and signs: ``Prompt Tokens``, ``promptTokens`` and
# ``usage.prompt_tokens`` are one name.
#
# From the responses of OpenAI, Anthropic and Gemini, from the logs of LiteLLM, OpenRouter, Langfuse
# and Helicone, from OpenTelemetry's ``gen_ai`` attributes and OpenInference, and from benchmarks
# (vLLM, SGLang, genai-perf, AIPerf).


_ARRIVAL = (
    *("arrival", "arrivaltime", "arrivedat", "arrivaltimestamp", "requestarrivaltime"),
    *("requesttime", "requesttimestamp", "requestcreatedat", "requeststarttime", "requeststart"),
    *("receivedat", "receivedtime", "starttime", "starttimestamp", "startedat", "start"),
    *("timestamp", "timestamputc", "createdat", "created", "creationtime", "submittedat"),
    *("sendtime", "senttime", "sentat", "eventtime", "loggedat", "datetime", "ts", "time", "date"),
)
_INPUT = (
    *("prompttokens", "inputtokens", "numprompttokens", "numinputtokens", "contexttokens"),
    *("requesttokens", "querytokens", "prefilltokens", "numprefilltokens", "nprompttokens"),
    *("prompttokencount", "inputtokencount", "tokenspromptcount", "llmtokencountprompt"),
    *("tokensprompt", "tokensinput", "tokensin", "inputtoks", "prompttoks", "numinput"),
    *("inputlength", "promptlength", "inputlen", "promptlen", "inputsequencelength", "isl"),
)
_OUTPUT = (
    *("completiontokens", "outputtokens", "numcompletiontokens", "numoutputtokens"),
    *("generatedtokens", "numgeneratedtokens", "responsetokens", "decodetokens"),
    *("numdecodetokens", "candidatestokencount", "completiontokencount", "outputtokencount"),
    *("llmtokencountcompletion", "tokenscompletion", "tokensoutput", "tokensout", "outputtoks"),
    *("numoutput", "outputlength", "completionlength", "responselength", "outputlen"),
    *("completionlen", "outputsequencelength", "osl"),
)
_STATUS = (
    *("status", "statuscode", "httpstatus", "httpstatuscode", "responsestatus"),
    *("responsestatuscode", "httpresponsestatuscode", "responsecode", "httpcode"),
)
_NEAR = 0.45
"""Least likeness of a name to one that logs use, from 0 to 1, for it to be suggested."""
_MOST_GUESSED = 100
"""Most columns among which one is suggested: each is compared with all names."""
_SIGNS = re.compile(r"[\W_]+")


class Names(NamedTuple):
    """Names of a file's columns; ``None`` where there is none of a kind."""

    arrival: str | None
    num_input: str | None
    num_output: str | None
    status: str | None = None
    """Column of the HTTP status, which a log may do without."""


def find_names(columns: Iterable[str]) -> Names:
    """Find the columns by a log's names; of several the one that is listed first.

    >>> tuple(find_names(["id", "startTime", "usage.prompt_tokens", "Completion Tokens"]))
    ('startTime', 'usage.prompt_tokens', 'Completion Tokens', None)
    """
    listed = list(columns)
    plain = {_plain(name): name for name in reversed(listed)}
    last = {_plain(name.rsplit(".", 1)[-1]): name for name in reversed(listed)}
    known = last | plain
    bare = {_plain(split_unit(name)[0]): name for name in reversed(listed)}
    found = (_first(_ARRIVAL, bare | known), _first(_INPUT, known), _first(_OUTPUT, known))
    return Names(*found, _first(_STATUS, known))


def guess_names(columns: Iterable[str]) -> dict[str, str]:
    """Guess which column holds what, by the likeness of names; ``...`` where none is near.

    >>> guess_names(["evt_epoch", "ctx_toks", "gen_toks"])
    {'arrival': 'evt_epoch', 'input': 'ctx_toks', 'output': 'gen_toks'}
    """
    wanted = {"arrival": _ARRIVAL, "input": _INPUT, "output": _OUTPUT}
    likeness = {
        (what, column): max(
            SequenceMatcher(None, _plain(column)[:64], one).ratio() for one in names
        )
        for column in list(columns)[:_MOST_GUESSED]
        for what, names in wanted.items()
    }
    found: dict[str, str] = {}
    for what, column in sorted(likeness, key=lambda pair: -likeness[pair]):
        if likeness[what, column] >= _NEAR and column not in found.values():
            found.setdefault(what, column)
    return {what: found.get(what, "...") for what in wanted}


def _plain(name: str) -> str:
    return _SIGNS.sub("", name).lower()


def _first(wanted: tuple[str, ...], known: dict[str, str]) -> str | None:
    return next((known[name] for name in wanted if name in known), None)
