"""Logs as people have them: columns by many names, times in many units, rows out of order and rows
that cannot be used.
"""

import json
import time
import tomllib

import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.config.workload import LogColumns, WorkloadSpec
from simulator.workload.requests import load_requests, read_trace
from simulator.workload.traces._times import split_unit
from tests.unit.trace_texts import AZURE, lines, read, written

HEADER = "timestamp,prompt_tokens,completion_tokens"
MOMENT_S = 1_700_000_000


def log(*times, header=HEADER):
    return "\n".join([header, *(f"{time},{n + 10},{n + 1}" for n, time in enumerate(times))])


@pytest.mark.parametrize(
    ("times", "read_as"),
    [
        (["2023-11-14T22:13:20Z", "2023-11-14T22:13:21.5Z"], "times in UTC"),
        (["2023-11-14 22:13:20", "2023-11-14 22:13:21.500000"], "times in UTC"),
        (["2023-11-15T00:13:20+02:00", "2023-11-14T22:13:21.5+00:00"], "times in UTC"),
        ([MOMENT_S, MOMENT_S + 1.5], "seconds since 1970"),
        ([MOMENT_S * 1000, MOMENT_S * 1000 + 1500], "milliseconds since 1970"),
        ([MOMENT_S * 10**6, MOMENT_S * 10**6 + 1_500_000], "microseconds since 1970"),
        ([MOMENT_S * 10**9, MOMENT_S * 10**9 + 1_500_000_000], "nanoseconds since 1970"),
        ([0.0, 1.5], "seconds; name it timestamp_ms"),
    ],
)
def test_times_are_recognised_and_the_note_says_as_what(tmp_path, times, read_as):
    trace = read(tmp_path, log(*times))
    assert trace.arrival_s.tolist() == [0, 1.5]
    assert trace.num_input.tolist() == [10, 11]
    assert trace.num_output.tolist() == [1, 2]
    (note,) = trace.notes
    assert f"timestamp read as {read_as}" in note
    assert ("2023-11-14T22:13:20" in note) == ("1970" in read_as or "UTC" in read_as)


def test_a_unit_in_the_name_goes_before_what_a_number_looks_like(tmp_path):
    for name, per_second in (("arrival_ms", 1e3), ("start_time_us", 1e6), ("createdNanos", 1e9)):
        header = HEADER.replace("timestamp", name)
        trace = read(tmp_path, log(0, int(1.5 * per_second), header=header))
        assert trace.arrival_s.tolist() == [0, 1.5]
        assert split_unit(name)[1] is not None


@pytest.mark.parametrize(
    "header",
    [
        "timestamp,prompt_tokens,completion_tokens",
        "created_at,input_tokens,output_tokens",
        "arrival_time,context_tokens,generated_tokens",
        "startTime,promptTokens,completionTokens",
        "Request Time,Request Tokens,Response Tokens",
        "ts,input_length,output_length",
        "created_at,tokens_prompt,tokens_completion",
        "start_time,gen_ai.usage.input_tokens,gen_ai.usage.output_tokens",
        "start_time,llm.token_count.prompt,llm.token_count.completion",
        "time,promptTokenCount,candidatesTokenCount",
        "timestamp,ContextTokens,GeneratedTokens",
        "arrived_at,num_prefill_tokens,num_output_tokens",
    ],
)
def test_columns_go_by_the_names_that_logs_use(tmp_path, header):
    trace = read(tmp_path, log(3.0, 4.5, header=header))
    assert trace.arrival_s.tolist() == [0, 1.5]
    assert trace.num_input.tolist() == [10, 11]
    assert trace.num_output.tolist() == [1, 2]


OWN = {"arrival": "evt_epoch", "input": "ctx_toks", "output": "gen_toks"}


def write_frame(frame, path):
    """As CSV, JSON lines or Parquet, by the name."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
def test_a_workload_names_the_columns_of_a_log(tmp_path, name):
    columns = {"evt_epoch": [MOMENT_S, MOMENT_S + 1.5], "ctx_toks": [10, 11], "gen_toks": [1, 2]}
    write_frame(pd.DataFrame(columns), tmp_path / name)
    spec = WorkloadSpec.model_validate({"requests": {"file": name, "columns": OWN}})
    trace = load_requests(spec, tmp_path, 0)
    assert trace.arrival_s.tolist() == [0, 1.5]
    assert trace.num_input.tolist() == [10, 11]
    assert trace.num_output.tolist() == [1, 2]


def test_named_columns_go_before_those_that_are_recognised(tmp_path):
    path = written(tmp_path, "num_input,num_output,arrival_s,billed\n10,1,0.0,7\n11,2,1.5,8\n")
    assert read_trace(path).num_input.tolist() == [10, 11]
    billed = read_trace(path, columns=LogColumns(input="billed"))
    assert billed.num_input.tolist() == [7, 8]
    assert billed.num_output.tolist() == [1, 2]
    with pytest.raises(UserError, match="'biled'; did you mean 'billed'"):
        read_trace(path, columns=LogColumns(input="biled"))


def test_a_refused_log_ends_with_a_line_that_reads_it(tmp_path):
    path = written(tmp_path, log(3.0, 4.5, header="evt_epoch,ctx_toks,gen_toks"), "log.csv")
    with pytest.raises(UserError) as refusal:
        read_trace(path)
    _, copied = str(refusal.value).split("; say in the workload which column holds what: ")
    assert len(str(refusal.value).replace(str(path), "log.csv")) < 300
    trace = load_requests(WorkloadSpec.model_validate(tomllib.loads(copied)), tmp_path, 0)
    assert trace.arrival_s.tolist() == [0, 1.5]
    assert trace.num_input.tolist() == [10, 11]


def test_parquet_and_json_lines_hold_the_same_log(tmp_path):
    wanted = read(tmp_path, log("2023-11-14T22:13:20Z", "2023-11-14T22:13:21.5Z"))
    table = {"prompt_tokens": [10, 11], "completion_tokens": [1, 2]}
    texts = ["2023-11-14T22:13:20Z", "2023-11-14T22:13:21.5Z"]
    moments = pd.to_datetime(texts, format="ISO8601")
    for times in (moments, moments.tz_localize(None), texts):
        pd.DataFrame({"created_at": times, **table}).to_parquet(tmp_path / "log.parquet")
        found = read_trace(tmp_path / "log.parquet")
        assert found.arrival_s.tolist() == wanted.arrival_s.tolist()
        assert found.num_input.tolist() == wanted.num_input.tolist()
    nested = [
        {"created": MOMENT_S + n * 1.5, "usage": {"prompt_tokens": 10 + n, "completion_tokens": 1}}
        for n in range(2)
    ]
    found = read(tmp_path, lines(nested))
    assert found.arrival_s.tolist() == [0, 1.5]
    assert found.num_input.tolist() == [10, 11]


BROKEN = "\n".join(
    [
        HEADER,
        f"{MOMENT_S + 9},10,1",
        f"{MOMENT_S},20,2",
        "soon,30,3",
        f"{MOMENT_S + 5},,4",
        f"{MOMENT_S + 5},50",
        f"{MOMENT_S + 5},60,6",
        f"{MOMENT_S + 6},70,7",
        f"{MOMENT_S + 7},0,8",
        f"{MOMENT_S + 8},90,9",
    ]
)


def test_unusable_rows_are_left_out_and_counted_and_the_others_sorted(tmp_path):
    trace = read(tmp_path, BROKEN)
    assert trace.arrival_s.tolist() == [0, 5, 6, 8, 9]
    assert trace.num_input.tolist() == [20, 60, 70, 90, 10]
    assert trace.notes[1:] == (
        "4 of 9 rows left out; the first: line 5: prompt_tokens must be a whole number, got ''",
        "1 rows were out of order by timestamp and have been sorted",
    )
    with pytest.raises(UserError, match=r"trace, line 5: prompt_tokens .* 4 of 9 rows cannot"):
        read(tmp_path, BROKEN, strict=True)


@pytest.mark.parametrize("text", [AZURE + "\n2023-11-16 18:15:46.6805900,374,44\n" * 3])
def test_every_format_leaves_out_what_cannot_be_used(tmp_path, text):
    trace = read(tmp_path, text + "2023-11-16 18:15:40,3,x\n")
    assert trace.num_requests == 3
    assert len(trace.repairs) == 1
    rows = [{"timestamp": n, "input_length": 5, "output_length": 1} for n in (7, 9, 8)]
    trace = read(tmp_path, lines(rows) + '{"timestamp": 10, "input_le')
    assert trace.arrival_s.tolist() == [0, 0.001, 0.002]
    assert len(trace.repairs) == 2


def test_a_file_of_mostly_unusable_rows_is_refused(tmp_path):
    text = log("16/Nov/2023", "17/Nov/2023", "18/Nov/2023", MOMENT_S)
    with pytest.raises(UserError) as refusal:
        read(tmp_path, text)
    assert "line 2: timestamp must be an ISO 8601 time, or a number of" in str(refusal.value)
    assert "got '16/Nov/2023'; 4 of 4 rows cannot be used" in str(refusal.value)


@pytest.mark.parametrize("status", ["status", "Status Code", "http.response.status_code"])
def test_requests_that_were_not_served_are_left_out_and_counted(tmp_path, status):
    """Whether or not they have tokens, and though they are most of the rows."""
    frame = pd.DataFrame(
        {
            "timestamp": [float(number) for number in range(6)],
            "prompt_tokens": [10, 20, 30, 40, 50, 60],
            "completion_tokens": pd.array([1, None, None, None, 0, 6], dtype="Int64"),
            status: [200, 429, 500, 429, 503, 200],
        }
    )
    floats = frame.fillna(0).astype({status: float})
    for made, name in (
        (frame, "a.csv"),
        (floats, "b.csv"),
        (frame, "a.jsonl"),
        (frame, "a.parquet"),
    ):
        write_frame(made, tmp_path / name)
        found = read_trace(tmp_path / name, strict=True)
        assert found.arrival_s.tolist() == [0, 5]
        assert found.num_input.tolist() == [10, 60]
        assert (found.attributes, found.repairs) == ({}, ())
        assert "4 rows" in found.notes[1]
        assert "2 of 429, 1 of 500, 1 of 503" in found.notes[1]


def test_a_status_in_words_is_no_http_status(tmp_path):
    header = f"{HEADER},status"
    trace = read(tmp_path, f"{header}\n0,10,1,ok\n1,11,2,\n2,12,3,200 OK\n3,13,4,404 Not Found\n")
    assert trace.num_input.tolist() == [10, 11, 12]


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log.jsonl"])
def test_a_column_of_that_name_may_hold_other_things(tmp_path, name):
    """An attribute, such as a class of customers; in JSON lines, whose keys are not, nothing."""
    is_json = name.endswith("jsonl")
    values = [True, False] if is_json else ["premium", "free"]
    table = {"timestamp": [0.0, 1.0], "prompt_tokens": [10, 11], "completion_tokens": [1, 2]}
    write_frame(pd.DataFrame({**table, "status": values}), tmp_path / name)
    found = read_trace(tmp_path / name, strict=True)
    assert found.num_input.tolist() == [10, 11]
    held = [] if is_json else [values]
    assert [one.tolist() for one in found.attributes.values()] == held


def test_a_log_in_which_nothing_was_served_is_refused_with_its_codes(tmp_path):
    text = f"{HEADER},status\n0,10,1,429\n1,11,2,500\n2,12,3,429\n"
    with pytest.raises(UserError, match=r"no request was served, .* \(2 of 429, 1 of 500\)"):
        read(tmp_path, text)


def test_an_unknown_header_is_refused_with_what_is_known_and_what_was_found(tmp_path):
    with pytest.raises(UserError) as refusal:
        read(tmp_path, "when,prompt_tokens,answer\n1,2,3\n")
    message = str(refusal.value)
    assert "the columns 'when', 'prompt_tokens', 'answer'" in message
    assert 'arrival = "...", input = "prompt_tokens", output = "..."' in message
    assert len(message.splitlines()) == 1


def test_trace_info_tells_the_hours_and_strict_refuses(tmp_path, moesim):
    path = written(tmp_path, BROKEN)
    assert moesim("trace", "info", "--strict", path)[0] == 2
    code, out, _ = moesim("trace", "info", "--json", path)
    found = json.loads(out)
    assert code == 0
    assert found["busiest_hour"] == {"start_s": 0, "num_requests": 5, "rate_per_s": 5 / 9}
    assert "4 of 9 rows left out" in found["notes"][1]
    times = [*range(0, 3600, 1200), *range(3600, 10800, 100), 10800]
    written(tmp_path, log(*times))
    found = json.loads(moesim("trace", "info", "--json", path)[1])
    assert found["requests_by_hour"] == [3, 36, 36, 1]
    assert found["busiest_hour"]["start_s"] == 3600
    assert found["busiest_hour"]["rate_per_s"] == pytest.approx(0.01)


def test_a_log_of_many_columns_is_refused_at_once(tmp_path):
    path = written(tmp_path, ",".join(f"{'x' * 90}{n}" for n in range(600)) + "\n", "wide.csv")
    begun = time.perf_counter()
    with pytest.raises(UserError, match=r'input = "\.\.\."'):
        read_trace(path)
    assert time.perf_counter() - begun < 5
