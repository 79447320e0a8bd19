"""Every reader on the real file and on hand-made rows, and what each refuses, with the line and the
value.
"""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from simulator.base.errors import UserError
from simulator.planner.traffic import subset
from simulator.workload.requests import describe, read_trace
from simulator.workload.traces.table import write_table
from tests.shared import shared_file
from tests.unit.trace_texts import AZURE, BENCH, MOONCAKE, lines, read

SIXTEEN = [
    {"timestamp": 1.5, "input_length": 17, "output_length": 5, "hash_ids": [70, 71]},
    {
        "timestamp": 61.114,
        "input_length": 521,
        "output_length": 132,
        "hash_ids": list(range(70, 103)),
    },
]


# Real files


@pytest.mark.measured
def test_azure_conversation_has_its_published_statistics():
    trace = read_trace(shared_file("traces/requests/azure2023/AzureLLMInferenceTrace_conv.csv"))
    found = describe(trace)
    assert found["num_requests"] == 19_366
    assert found["duration_s"] == pytest.approx(3501.721937, abs=1e-6)
    assert [round(found[f"fano_{window}s"], 1) for window in (1, 10, 60)] == [1.4, 3.9, 16.1]
    assert found["iat_cv"] == pytest.approx(1.094, abs=1e-3)
    lengths = {"input": {"p50": 1020, "p99": 4142, "max": 14050}}
    lengths["output"] = {"p50": 129, "p90": 424, "max": 1000}
    assert all(found[side].items() >= wanted.items() for side, wanted in lengths.items())
    assert trace.arrival_s[1] == pytest.approx(4.314579)
    assert trace.notes == ()


@pytest.mark.measured
def test_mooncake_has_its_prefix_blocks():
    trace = read_trace(shared_file("traces/requests/mooncake/conversation_trace_first20min.jsonl"))
    found = describe(trace)
    assert found["num_requests"] == 3658
    assert found["duration_s"] == pytest.approx(1200, abs=1)
    assert found["prefix"]["block_tokens"] == 512
    assert found["prefix"]["ideal_hit_ratio"] == pytest.approx(0.318, abs=1e-3)
    assert (np.diff(trace.prefix_starts) == -(-trace.num_input // 512)).all()
    assert trace.prefix_ids.min() == 0
    assert trace.prefix_ids.max() == found["prefix"]["num_unique"] - 1


@pytest.mark.measured
@pytest.mark.parametrize(
    ("name", "num_requests", "input_p50", "output_p50"),
    [
        ("arxiv_summarization_stats_llama2_tokenizer_filtered_v2", 28_257, 2730, 167),
        ("sharegpt_8k_filtered_stats_llama2_tokenizer", 30_731, 1730, 415),
    ],
)
def test_length_files_are_read_packed(name, num_requests, input_p50, output_p50):
    trace = read_trace(shared_file(f"traces/requests/lengths/{name}.csv.gz"))
    assert (trace.num_requests, trace.has_arrivals) == (num_requests, False)
    assert (np.median(trace.num_input), np.median(trace.num_output)) == (input_p50, output_p50)


@pytest.mark.measured
def test_a_benchmark_log_matches_the_workload_it_replayed():
    workload = read_trace(
        shared_file("traces/requests/llmservingsim/sharegpt-llama-3.1-8b-300-sps10.lengths.jsonl")
    )
    log = read_trace(
        shared_file(
            "traces/measured/llmservingsim_vllm_RTXPRO6000/Llama-3.1-8B/vllm/requests.jsonl"
        )
    )
    assert workload.num_requests == log.num_requests == 300
    np.testing.assert_array_equal(workload.num_input, log.num_input)
    np.testing.assert_allclose(workload.arrival_s, log.arrival_s, atol=0.05)


# Hand-made rows


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_azure_whatever_the_line_ends(tmp_path, end, bom):
    newline = "\r\n" if end == "\r\n" else "\n"
    rows = [AZURE, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"]
    trace = read(tmp_path, bom + newline.join(rows) + end)
    np.testing.assert_allclose(trace.arrival_s, [0, 4.314579], atol=1e-9)
    assert trace.num_input.tolist() == [374, 396]
    assert trace.num_output.tolist() == [44, 109]


def test_azure_2024_names_the_zone_and_skips_zero_fractions(tmp_path):
    rows = [AZURE, "2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 00:00:01+00:00,2399,6"]
    assert read(tmp_path, "\n".join(rows)).arrival_s.tolist() == [0, 0.99007]


def test_azure_multimodal_counts_images_in_a_note(tmp_path):
    rows = [
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens",
        "2025-01-01 00:00:00,2,1000,5",
        "2025-01-01 00:00:01,0,10,6",
    ]
    trace = read(tmp_path, "\n".join(rows))
    assert trace.num_input.tolist() == [1000, 10]
    assert "1 requests carry images" in trace.notes[0]


BURSTGPT = [
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "5,ChatGPT,472,18,490,Conversation log",
    "45,ChatGPT,1087,230,1317,Conversation log",
    "50,GPT-4,99,0,99,API log",
    "118,GPT-4,417,276,693,Conversation log",
]


def test_burstgpt_is_read_by_name_in_every_version(tmp_path):
    added = ("Session ID,Elapsed time", "1,0.7", ",9.1", ",0", "2,3")
    third = [f"{new},{row}" for new, row in zip(added, BURSTGPT, strict=True)]
    for text in (BURSTGPT, third):
        trace = read(tmp_path, "\n".join(text))
        assert trace.arrival_s.tolist() == [0, 40, 113]
        assert trace.num_input.tolist() == [472, 1087, 417]
        assert trace.num_output.tolist() == [18, 230, 276]
        assert "1 of 4 rows" in trace.notes[0]


def test_mooncake_is_told_from_bailian_by_its_blocks(tmp_path):
    mooncake = read(tmp_path, lines(MOONCAKE))
    assert mooncake.arrival_s.tolist() == [0, 3]
    assert mooncake.prefix_block_tokens == 512
    assert mooncake.prefix_starts.tolist() == [0, 2, 5]
    assert mooncake.prefix_ids.tolist() == [0, 1, 0, 1, 2]
    bailian = read(
        tmp_path,
        lines(
            {"chat_id": 159, "parent_chat_id": -1, **row, "type": "text", "turn": 1}
            for row in SIXTEEN
        ),
    )
    vllm = read(tmp_path, lines(SIXTEEN))
    for trace in (bailian, vllm):
        np.testing.assert_allclose(trace.arrival_s, [0, 59.614])
        assert trace.prefix_block_tokens == 16
        assert trace.prefix_starts.tolist() == [0, 2, 35]
    assert "Bailian" in bailian.provenance
    assert "timed trace" in vllm.provenance


def test_block_ids_may_be_wider_than_64_bits(tmp_path):
    wide = [{**row, "hash_ids": [block + 2**70 for block in row["hash_ids"]]} for row in MOONCAKE]
    assert read(tmp_path, lines(wide)).prefix_ids.tolist() == [0, 1, 0, 1, 2]


def test_mooncake_without_blocks_is_what_other_tools_write(tmp_path):
    trace = read(
        tmp_path, lines({k: v for k, v in row.items() if k != "hash_ids"} for row in MOONCAKE)
    )
    assert trace.prefix_block_tokens == 0
    assert trace.notes == ("timestamps read as milliseconds",)


def test_splitwise_and_lengths_differ_by_their_arrivals(tmp_path):
    timed = read(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,1\n2.5,20,2\n")
    assert timed.arrival_s.tolist() == [0, 2]
    bare = read(
        tmp_path,
        gzip.compress(
            b"num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n10,1,11,10.0\n"
        ),
    )
    assert not bare.has_arrivals


def test_vllm_results_with_an_infinite_rate(tmp_path):
    trace = read(tmp_path, json.dumps(BENCH))
    assert trace.arrival_s.tolist() == [0, 0.25]
    assert trace.num_input.tolist() == [20, 10]
    left_out, sorted_rows = trace.notes
    assert "1 of 3 rows" in left_out
    assert "start_times" in sorted_rows
    closed = read(tmp_path, json.dumps({**BENCH, "max_concurrency": 2}, indent=1))
    assert closed.concurrency == 2
    assert not closed.arrival_s.any()
    assert closed.num_input.tolist() == [10, 20]
    finite = read(tmp_path, json.dumps({**BENCH, "max_concurrency": 2, "request_rate": 4.0}))
    assert finite.concurrency is None
    untimed = {key: value for key, value in BENCH.items() if key != "start_times"}
    assert not read(tmp_path, json.dumps(untimed)).has_arrivals


def test_a_custom_data_set_has_exact_answers_and_estimated_prompts(tmp_path):
    trace = read(
        tmp_path,
        lines([{"prompt": "a" * 400, "output_tokens": 7}, {"prompt": "b", "output_tokens": 9}]),
    )
    assert trace.num_input.tolist() == [100, 1]
    assert trace.num_output.tolist() == [7, 9]
    assert "estimated" in trace.notes[0]
    assert not trace.has_arrivals


def test_sharegpt_lengths_are_estimates_and_say_so(tmp_path):
    turns = [
        {"from": "human", "value": "w" * 40},
        {"from": "gpt", "value": "b" * 80},
        {"from": "human", "value": "more"},
    ]
    trace = read(
        tmp_path,
        json.dumps([{"id": "x", "conversations": turns}, {"id": "y", "conversations": turns[:1]}]),
    )
    assert trace.num_input.tolist() == [10]
    assert trace.num_output.tolist() == [20]
    assert "estimated" in trace.notes[0]
    assert trace.notes[1] == "1 of 2 conversations of fewer than two turns left out"


def test_tables_hold_lengths_alone_too(tmp_path):
    assert not read(tmp_path, "num_input,num_output\n1,2\n").has_arrivals
    trace = read(tmp_path, "arrival_s,num_input,num_output\n5,1,2\n7.5,374.0,4\n")
    assert trace.arrival_s.tolist() == [0, 2.5]
    assert trace.num_input.tolist() == [1, 374]
    write_table(trace, tmp_path / "again.parquet")
    assert read_trace(tmp_path / "again.parquet").arrival_s.tolist() == [0, 2.5]


@pytest.mark.parametrize("name", ["again.parquet", "again.csv"])
def test_tables_say_what_kind_of_text_a_request_is(tmp_path, name):
    head = "arrival_s,num_input,num_output,domain\n"
    trace = read(tmp_path, head + "9,4,4,code\n5,1,2,code\n7,3,4,chat\n7,0,4,prose\n8,2,2,\n")
    assert trace.domains == ("chat", "code")
    assert trace.domain.tolist() == [1, 0, -1, 1]
    write_table(trace, tmp_path / name)
    again = read_trace(tmp_path / name)
    assert (again.domains, again.domain.tolist()) == (trace.domains, trace.domain.tolist())
    later = subset(trace, np.array([1, 3]))
    assert (later.domains, later.domain.tolist()) == (trace.domains, [0, 1])


@pytest.mark.parametrize("name", ["again.parquet", "again.csv"])
def test_further_columns_of_tables_are_attributes_of_requests(tmp_path, name):
    head = "arrival_s,num_input,num_output,priority,tenant,target_s,prompt\n"
    long = "x" * 65
    rows = f"9,4,4,1,a,0.5,{long}\n5,1,2,0,b,,{long}\n7,3,0,2,,1e3,{long}\n7,3,4,2,,1e3,{long}\n"
    asked = "num_input_tokens,num_output_tokens,num_input,prefix_ids\n1,2,9,7\n"
    assert not read(tmp_path, asked).attributes, "no column of a table is overwritten"
    trace = read(tmp_path, head + rows)
    assert trace.attributes.keys() == {"priority", "tenant", "target_s"}
    assert trace.attributes["priority"].tolist() == [0, 2, 1]
    assert trace.attributes["tenant"].tolist() == ["b", "", "a"]
    assert np.array_equal(trace.attributes["target_s"], [np.nan, 1e3, 0.5], equal_nan=True)
    write_table(trace, tmp_path / name)
    again = read_trace(tmp_path / name)
    for column, values in trace.attributes.items():
        assert str(again.attributes[column].tolist()) == str(values.tolist())
    later = subset(trace, np.array([0, 2]))
    assert later.attributes["tenant"].tolist() == ["b", "a"]


def test_attributes_stay_with_their_rows_where_others_are_left_out(tmp_path):
    head = "timestamp,num_input_tokens,num_output_tokens,priority\n"
    rows = "1,1,2,10\nnever,2,2,20\n3,3,2,30\n2,4,2,40\n5,5,0,50\n6,6,2,60\n"
    trace = read(tmp_path, head + rows)
    assert trace.num_input.tolist() == [1, 4, 3, 6]
    assert trace.attributes["priority"].tolist() == [10, 40, 30, 60]


def test_columns_of_logs_are_attributes_and_tables_in_them_are_not(tmp_path):
    head = "num_input_tokens,num_output_tokens,priority,user\n"
    trace = read(tmp_path, head + "1,2,0,me\n2,2,1,you\n")
    assert {name: values.tolist() for name, values in trace.attributes.items()} == {
        "priority": [0, 1],
        "user": ["me", "you"],
    }
    long = pyarrow.array(["x" * 10**5, "y" * 65]).dictionary_encode()
    columns = {
        **{"num_input": [1, 2], "num_output": [2, 2], "priority": [1, None], "more": [[1], [2]]},
        **{"small": pyarrow.array([3, 250], pyarrow.uint8()), "is_paid": [True, False]},
        **{"at": pyarrow.array([0, 1], pyarrow.timestamp("s")), "prompt": long, "": [1, 2]},
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    attributes = read_trace(tmp_path / "a.parquet").attributes
    assert attributes.keys() == {"priority", "small", "is_paid"}
    assert np.array_equal(attributes["priority"], [1, np.nan], equal_nan=True)
    assert (-attributes["small"]).tolist() == [-3, -250]
    assert attributes["is_paid"].tolist() == [1, 0]
    twice = pyarrow.table([[1], [2], [0], [1]], ["num_input", "num_output", "priority", "priority"])
    pyarrow.parquet.write_table(twice, tmp_path / "a.parquet")
    assert not read_trace(tmp_path / "a.parquet").attributes


def test_logs_may_say_what_kind_of_text_a_request_is_and_info_tells_how_many(tmp_path):
    trace = read(tmp_path, "num_input_tokens,num_output_tokens,domain\n1,2,code\n2,2,\n3,3,code\n")
    assert trace.domain.tolist() == [0, -1, 0]
    assert describe(trace)["domains"] == {"code": 2}


@pytest.mark.parametrize("value", ["x" * 65, ["a"], b"\xff"])
def test_a_domain_that_is_no_short_text_is_refused_by_name(tmp_path, value):
    columns = {"num_input": [1], "num_output": [2], "domain": [value]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"domain .*texts of at most 64 characters"):
        read_trace(tmp_path / "a.parquet")
    if isinstance(value, str):
        with pytest.raises(UserError, match="domain must be a text of at most 64 characters"):
            read(tmp_path, f"num_input,num_output,domain\n1,2,{value}\n")


A, B = "2023-11-16 18:15:46.1,374,44", "2023-11-16 18:15:47.2,396,109"
EARLY = "2023-11-16 18:15:46.5,1,1"
JSONL, CSV = lines(MOONCAKE[:1]), f"{AZURE}\n{A}\n"
TABLE = "num_input,num_output,prefix_block_tokens,prefix_ids\n"
BOTH = "arrived_at,num_prefill_tokens,num_decode_tokens,num_input,num_output\n"


def second(**changes):
    return JSONL + json.dumps({**MOONCAKE[1], **changes})


def bench(**changes):
    return json.dumps({**BENCH, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", ": the file is empty"),
        (b"\n\n  \n", ": the file is empty"),
        (b"\xef\xbb\xbf", ": the file is empty"),
        (gzip.compress(b"", mtime=0), ": the file is empty"),
        (
            gzip.compress(b"num_input,num_output\n" * 9, mtime=0)[:-12],
            ": damaged, or not a whole packed",
        ),
        (AZURE, ": holds no request"),
        (CSV + "2023-11-16 18:15:47.2,x,109", ", line 3: ContextTokens must be a whole number"),
        (CSV + B + "\n2023-11-16 18:15:48.2,5", ", line 4: has 2 columns, the header has 3"),
        (CSV + "\n2023-11-16 18:15:48.2,-5,6", ", line 4: ContextTokens must be at least 1"),
        (CSV + "2023-11-16 18:15:46+02:00,5,6", ", line 3: TIMESTAMP must be a UTC time"),
        (CSV + f"{B}\n{EARLY}", ", line 4: TIMESTAMP lies 0.7 s before"),
        (f"{AZURE}\n".encode() + b"\xff,1,1\n", ", line 2: not UTF-8 text"),
        (JSONL + "{", ", line 2: not valid JSON"),
        (JSONL + "[1]", ", line 2: must hold a JSON object, found a list"),
        (JSONL + '{"input_length": 5, "output_length": 5}', ", line 2: missing timestamp"),
        (second(timestamp=float("nan")), ", line 2: timestamp must be a finite number"),
        (second(timestamp=-1), ", line 2: timestamp lies 0.001 s before"),
        (second(timestamp=0.5), ", line 2: timestamp must be whole milliseconds"),
        (second(output_length=True), ", line 2: output_length must be a whole number"),
        (second(hash_ids=[1]), ", line 2: 1 hash_ids for input_length 1025"),
        (json.dumps({**MOONCAKE[1], "hash_ids": 3}), ", line 1: hash_ids must be a list"),
        (bench(input_lens=None), ": no list input_lens"),
        (bench(output_lens=[1]), ": output_lens has 1 entries, input_lens has 3"),
        (bench(input_lens=[1, "x", 2]), ", entry 2: input_lens must be a number"),
        (bench(start_times=[1, float("nan"), 2]), ", entry 2: start_times must be a finite"),
        (bench(output_lens=[0, 0, 0]), ": holds no request"),
        (bench(max_concurrency=0), ": max_concurrency must be a whole number"),
        ('[{"conversations": [{"value": 1}]}', ", line 1, column 35: not valid JSON"),
        ('[{"conversations": [{"value": 1}]}]', ", entry 1: conversations must be a list"),
        ("time_stamp,ContextTokens\n1,2\n", ": not a request trace of a known format"),
        (TABLE + "20,1,16,0 1\n20,1,8,0 1\n", ": prefix_block_tokens must be the same number"),
        (BOTH + "0,1,1,1,1\n", ": could be any of splitwise, table"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_with_the_place(tmp_path, text, said):
    with pytest.raises(UserError) as found:
        read(tmp_path, text, strict=True)
    message = str(found.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'trace'}{said}")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"num_input": [1, None], "num_output": [1, 1]}, "row 2: num_input has no value"),
        ({"num_input": ["a"], "num_output": [1]}, "column num_input must hold int numbers"),
        ({"num_input": [1, -2], "num_output": [1, 1]}, "row 2: num_input must be at least 1"),
        ({"num_input": [1], "num_output": [1], "prefix_ids": [[1]]}, "prefix_block_tokens"),
        ({"num_input": [1], "num_output": [1], "arrival_s": [float("nan")]}, "row 1: arrival_s"),
    ],
)
def test_broken_parquet_is_refused_with_its_row(tmp_path, columns, said):
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(UserError, match=said):
        read_trace(path, strict=True)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged, or not a Parquet file"):
        read_trace(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_trace(tmp_path / "missing.csv")
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"it is a folder of 1 entries \(notes.txt\)"):
        read_trace(tmp_path / "trace")


def test_equal_times_are_in_order(tmp_path):
    assert read(tmp_path, "\n".join([AZURE, A, A, B])).num_requests == 3
