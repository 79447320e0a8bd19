"""Traces as their formats write them, for the tests of what is read and of what is refused."""

import json

from simulator.workload.requests import read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
MOONCAKE = [
    {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]},
    {"timestamp": 3000, "input_length": 1025, "output_length": 6, "hash_ids": [7, 9, 11]},
]
BENCH = {
    "date": "20251101-120000",
    "endpoint_type": "openai",
    "num_prompts": 3,
    "request_rate": "inf",
    "max_concurrency": None,
    "completed": 2,
    "total_input_tokens": 30,
    "request_throughput": 1.0,
    "input_lens": [10, 20, 5],
    "output_lens": [3, 4, 0],
    "start_times": [100.25, 100.0, 100.5],
}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(tmp_path, text, name="trace"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(tmp_path, text, *, strict=False):
    return read_trace(written(tmp_path, text), strict=strict)
