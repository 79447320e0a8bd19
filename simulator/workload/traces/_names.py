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
EXAMPLES = {
    "arrival": "timestamp, arrival_time, created_at, startTime",
    "prompt tokens": "prompt_tokens, input_tokens, context_tokens, input_length",
    "output tokens": "completion_tokens, output_tokens, generated_tokens, output_length",
}
"""Examples for users whose columns have other names; all are in the module."""
_SIGNS = re.compile(r"[\W_]+")


class Names(NamedTuple):
    """Names of a file's columns; ``None`` where there is none of a kind."""

    arrival: str | None
    num_input: str | None
    num_output: str | None
    status: str | None = None
    """Column of the HTTP status, which a log may do without."""

    def __str__(self) -> str:
        """Describe the columns that were found, and those that were not."""
        pairs = zip(EXAMPLES.items(), self[:3], strict=True)
        return ", ".join(
            f"{what}: '{name}'" if name else f"{what}: none, such as {examples}"
            for (what, examples), name in pairs
        )


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


def _plain(name: str) -> str:
    return _SIGNS.sub("", name).lower()


def _first(wanted: tuple[str, ...], known: dict[str, str]) -> str | None:
    return next((known[name] for name in wanted if name in known), None)
