"""What a reader refuses where rows may not be left out: one line with the file, the line, the value
and what would be right.
"""

import gzip
import json

import pytest

from simulator.base.errors import UserError
from simulator.workload.requests import read_trace
from tests.unit.trace_texts import AZURE, BENCH, MOONCAKE, lines, read


def refusal(tmp_path, text):
    with pytest.raises(UserError) as found:
        read(tmp_path, text, strict=True)
    message = str(found.value)
    assert "\n" not in message
    assert message.startswith(str(tmp_path / "trace"))
    return message.removeprefix(str(tmp_path / "trace"))


def test_broken_parquet_is_refused_with_its_row(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    for columns, message in (
        ({"num_input": [1, None], "num_output": [1, 1]}, "row 2: num_input has no value"),
        ({"num_input": ["a"], "num_output": [1]}, "column num_input must hold int numbers"),
        (
            {"num_input": [1, -2], "num_output": [1, 1]},
            "row 2: num_input must be at least 1 tokens, got -2",
        ),
        (
            {"num_input": [1], "num_output": [1], "prefix_ids": [[1]]},
            "prefix_ids need a column prefix_block_tokens",
        ),
        (
            {"num_input": [1], "num_output": [1], "arrival_s": [float("nan")]},
            "row 1: arrival_s must be a finite number",
        ),
    ):
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(UserError) as found:
            read_trace(path, strict=True)
        assert message in str(found.value)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged, or not a Parquet file"):
        read_trace(path)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n  \n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)]
)
def test_empty_files(tmp_path, content):
    assert (
        refusal(tmp_path, content)
        == ": the file is empty; a request trace has at least one request"
    )


def test_a_missing_file_and_a_damaged_archive(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_trace(tmp_path / "missing.csv")
    assert "not a whole packed file" in refusal(
        tmp_path, gzip.compress(b"num_input,num_output\n" * 9)[:-12]
    )


A, B, C = (
    "2023-11-16 18:15:46.1,374,44",
    "2023-11-16 18:15:47.2,396,109",
    "2023-11-16 18:15:46.5,1,1",
)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], ": holds no request; a request trace has at least one"),
        (
            [A, "2023-11-16 18:15:47.2,x,109"],
            ", line 3: ContextTokens must be a whole number, got 'x'",
        ),
        (
            [A, "2023-11-16 18:15:47.2,1.5,109"],
            ", line 3: ContextTokens must be a whole number, got '1.5'",
        ),
        (
            [A, "", "2023-11-16 18:15:47.2,,109"],
            ", line 4: ContextTokens must be a whole number, got ''",
        ),
        ([A, B, "2023-11-16 18:15:48.2,5"], ", line 4: has 2 columns, the header has 3"),
        ([A, B, "2023-11-16 18:15:48.2,5,6,7"], ", line 4: has 4 columns, the header has 3"),
        (
            [A, "", "2023-11-16 18:15:48.2,-5,6"],
            ", line 4: ContextTokens must be at least 1 tokens, got -5",
        ),
        (
            [A, "2023-11-16 18:15:48.2,5,0"],
            ", line 3: GeneratedTokens must be at least 1 tokens, got 0",
        ),
        (
            [A, "NaN,5,6"],
            ", line 3: TIMESTAMP must be a UTC time such as 2023-11-16 18:15:46.6805900, got 'NaN'",
        ),
        (
            [A, "2023-11-16 18:15:46+02:00,5,6"],
            ", line 3: TIMESTAMP must be a UTC time such as 2023-11-16 18:15:46.6805900",
        ),
        (
            [A, B, C],
            ", line 4: TIMESTAMP lies 0.7 s before that of the row above; sort the rows by it",
        ),
    ],
)
def test_broken_csv(tmp_path, rows, message):
    assert refusal(tmp_path, "\n".join([AZURE, *rows])).startswith(message)


def test_equal_times_are_in_order(tmp_path):
    assert read(tmp_path, "\n".join([AZURE, A, A, B])).num_requests == 3


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", ", line 2: not valid JSON"),
        ("[1]", ", line 2: must hold a JSON object, found a list"),
        (
            {"input_length": 5, "output_length": 5, "hash_ids": [1]},
            ", line 2: missing timestamp; it must be a finite number",
        ),
        (
            {**MOONCAKE[1], "timestamp": float("nan")},
            ", line 2: timestamp must be a finite number, got NaN",
        ),
        (
            {**MOONCAKE[1], "timestamp": "soon"},
            ", line 2: timestamp must be a finite number, got 'soon'",
        ),
        (
            {**MOONCAKE[1], "timestamp": -1},
            ", line 2: timestamp lies 0.001 s before that of the row above",
        ),
        (
            {**MOONCAKE[1], "timestamp": 0.5},
            (
                ", line 2: timestamp must be whole milliseconds in a Mooncake trace, "
                "got 0.5; multiply by 1000"
            ),
        ),
        (
            {**MOONCAKE[1], "output_length": True},
            ", line 2: output_length must be a whole number, got true",
        ),
        (
            {**MOONCAKE[1], "output_length": None},
            ", line 2: output_length must be a whole number, got null",
        ),
        (
            {**MOONCAKE[1], "hash_ids": [1, None, 2]},
            ", line 2: hash_ids must be a list of whole numbers, got [1, null, 2]",
        ),
        (
            {**MOONCAKE[1], "hash_ids": [1]},
            ", line 2: 1 hash_ids for input_length 1025; blocks of 512 tokens need 3",
        ),
    ],
)
def test_broken_json_lines(tmp_path, second, message):
    text = lines(MOONCAKE[:1]) + (second if isinstance(second, str) else json.dumps(second))
    assert refusal(tmp_path, text).startswith(message)


def test_a_custom_data_set_without_answers_is_refused(tmp_path):
    assert (
        refusal(tmp_path, lines([{"prompt": "a"}]))
        == ", line 1: missing output_tokens; it must be a whole number"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_lens": None}, ": no list input_lens; run the benchmark with --save-detailed"),
        ({"output_lens": [1]}, ": output_lens has 1 entries, input_lens has 3"),
        ({"input_lens": [1, "x", 2]}, ', entry 2: input_lens must be a number, got "x"'),
        ({"input_lens": [1, 1.5, 2]}, ", entry 2: input_lens must be a whole number, got 1.5"),
        ({"input_lens": [1, -1, 2]}, ", entry 2: input_lens must be at least 0 tokens, got -1"),
        ({"start_times": [1, float("nan"), 2]}, ", entry 2: start_times must be a finite number"),
        ({"output_lens": [0, 0, 0]}, ": holds no request"),
        ({"max_concurrency": 0}, ": max_concurrency must be a whole number of at least 1, got 0"),
    ],
)
def test_broken_vllm_results(tmp_path, change, message):
    assert refusal(tmp_path, json.dumps({**BENCH, **change})).startswith(message)


def test_a_table_needs_one_block_size(tmp_path):
    message = refusal(
        tmp_path, "num_input,num_output,prefix_block_tokens,prefix_ids\n20,1,16,0 1\n20,1,8,0 1\n"
    )
    assert message == ": prefix_block_tokens must be the same number, at least 1, in every row"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"conversations": [{"value": 1}]}', ", line 1, column 35: not valid JSON"),
        (
            '[{"conversations": [{"value": 1}]}]',
            ", entry 1: conversations must be a list of turns with a text 'value'",
        ),
        (
            '{"request_rate": 1, "num_prompts": 1, "total_input_tokens": 1',
            ", line 1, column 62: not valid JSON",
        ),
        (
            "time_stamp,ContextTokens\n1,2\n",
            (
                ": not a request trace of a known format; its first line reads as the "
                "columns 'time_stamp'"
            ),
        ),
        (
            '{"timestamp": 1, "hash_ids": 3}\n',
            (
                ": not a request trace of a known format; it holds JSON with the keys "
                "hash_ids, timestamp"
            ),
        ),
        (
            '{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": 3}',
            ", line 1: hash_ids must be a list of whole numbers",
        ),
        (
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n\xff,1,1\n",
            ", line 2: not UTF-8 text; save the file as UTF-8",
        ),
    ],
)
def test_other_broken_files(tmp_path, text, message):
    assert refusal(tmp_path, text).startswith(message)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"it is a folder of 1 entries \(notes.txt\)"):
        read_trace(tmp_path / "trace")


def test_what_could_be_two_formats_is_refused(tmp_path):
    message = refusal(
        tmp_path,
        "arrived_at,num_prefill_tokens,num_decode_tokens,num_input,num_output\n0,1,1,1,1\n",
    )
    assert message.startswith(
        ": could be any of splitwise, table; its first line reads as the columns 'arrived_at'"
    )
