"""Names in logs of the three columns that a request trace needs, and of the HTTP status, written
without capitals, spaces and signs: ``Prompt Tokens``, ``promptTokens`` and ``usage.prompt_tokens``
are one name.

From the responses of OpenAI, Anthropic and Gemini, from the logs of LiteLLM, OpenRouter, Langfuse
and Helicone, from OpenTelemetry's ``gen_ai`` attributes and OpenInference, and from benchmark tools
(vLLM, SGLang, genai-perf, AIPerf).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import NamedTuple

from simulator.workload.traces._times import split_unit

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
