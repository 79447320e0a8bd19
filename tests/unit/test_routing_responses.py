"""Experts of tokens in the responses of vLLM and SGLang, saved a line each."""

import base64
import gzip
import io
import json

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.config.ffns.moe import MoE
from simulator.policies.routing.replay import Replay

MODEL = MoE(kind="moe", num_experts=8, top_k=2, intermediate_size=4)
LAYERS = 3
RNG = np.random.default_rng(0)


def draw_ids(seed, num_tokens, num_layers=LAYERS):
    scores = np.random.default_rng(seed).random((num_tokens, num_layers, 8))
    return np.argsort(scores, axis=2)[:, :, :2]


def as_npy(ids):
    stream = io.BytesIO()
    np.save(stream, ids)
    return base64.b64encode(stream.getvalue()).decode()


def as_int32(ids):
    return base64.b64encode(ids.astype(np.int32).tobytes()).decode()


def vllm(name, ids, **more):
    choice = {"index": 0, "text": "..", "routed_experts": as_npy(ids.astype(np.uint8))}
    return {"id": name, "object": "text_completion", "choices": [choice], **more}


def sglang(name, ids, prompt):
    counts = {"prompt_tokens": prompt, "completion_tokens": len(ids) - prompt + 1}
    return {"text": "..", "meta_info": {"id": name, "routed_experts": as_int32(ids), **counts}}


def sglang_openai(name, ids, prompt):
    usage = {"prompt_tokens": prompt, "completion_tokens": len(ids) - prompt + 1}
    return {
        "id": name,
        "choices": [{"message": {"content": ".."}}],
        "usage": usage,
        "sglext": {"routed_experts": as_int32(ids)},
    }


def write(path, *responses):
    path.write_text("\n".join(json.dumps(response) for response in responses) + "\n")
    return path


def read(path, **keys):
    policy = Replay(trace=str(path), exact=True, **keys)
    return policy.prepare(MODEL, LAYERS, RNG).recorded


FOUR = {"routed_experts": as_int32(draw_ids(1, 3)), "prompt_tokens": 4, "completion_tokens": 1}
FORMS = {
    "vLLM": lambda ids: vllm("a", ids),
    "SGLang": lambda ids: sglang("a", ids, 4),
    "SGLang, OpenAI": lambda ids: sglang_openai("a", ids, 4),
    "lists": lambda ids: {"request_id": "a", "routed_experts": ids.tolist()},
    "vLLM offline": lambda ids: {"request_id": "a", "outputs": [{"routed_experts": ids.tolist()}]},
}


@pytest.mark.parametrize("form", FORMS)
def test_each_engines_responses_are_read(tmp_path, form):
    ids = draw_ids(1, 9)
    found = read(write(tmp_path / "responses.jsonl", FORMS[form](ids)))
    assert np.array_equal(found.ids_LTK, ids.transpose(1, 0, 2))
    assert found.request_ids == ("a",)
    assert found.start_Q.tolist() == [0]


def test_each_response_is_a_sequence_of_its_request_and_domain(tmp_path):
    first, second = draw_ids(1, 9), draw_ids(2, 5)
    path = write(
        tmp_path / "responses.jsonl",
        vllm("a", first, domain="code"),
        {"id": "failed", "error": "..."},
        vllm("b", second, domain="chat"),
    )
    found = read(path)
    assert found.start_Q.tolist() == [0, 9]
    assert found.request_ids == ("a", "b")
    assert [found.domains[place] for place in found.domain_Q] == ["code", "chat"]
    assert np.array_equal(found.ids_LTK[:, 9:], second.transpose(1, 0, 2))
    assert np.array_equal(read(path, domain="chat").ids_LTK, second.transpose(1, 0, 2))
    assert read(path, domain="chat").request_ids == ("b",)


def test_packed_responses_and_several_outputs_are_read(tmp_path):
    ids = [draw_ids(seed, 6) for seed in (1, 2)]
    response = vllm("a", ids[0])
    response["choices"] += vllm("a", ids[1])["choices"]
    path = tmp_path / "responses.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(response).encode()))
    found = read(path)
    assert found.start_Q.tolist() == [0, 6]
    assert found.request_ids == ("a", "")


def test_dense_layers_of_sglang_are_left_out(tmp_path):
    ids = np.concatenate([np.zeros((7, 2, 2), int), draw_ids(1, 7)], axis=1)
    found = read(write(tmp_path / "responses.jsonl", sglang("a", ids, 3)))
    assert np.array_equal(found.ids_LTK, ids[:, 2:].transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("responses", "wanted"),
    [
        ([{"id": "a", "text": ".."}], r"no line has 'routed_experts'; start the engine with"),
        ([vllm("a", draw_ids(1, 4)), vllm("a", draw_ids(2, 4))], "request 'a' is in 2 lines"),
        ([{"id": "a", "routed_experts": "%%"}], "line 1: routed_experts is not base64"),
        ([{"routed_experts": as_int32(draw_ids(1, 4).ravel()[:-2])}], "no multiple of 3 layers"),
        ([{**sglang("a", draw_ids(1, 3), 1), "meta_info": FOUR}], "no multiple of 4 tokens"),
        ([{"routed_experts": [[[1, 2], [3]]]}], "rows of different lengths"),
        ([{"routed_experts": [[[1], [2], [3]]]}], "line 1: 1 experts of a token, and the model"),
        ([{**vllm("a", draw_ids(1, 4)), "domain": {"a": 1}}], "domain must be a text"),
        ([{"routed_experts": [1, 2]}], r"must be whole numbers \[tokens, layers, top-k\]"),
        ([vllm("a", draw_ids(1, 4)), vllm("b", draw_ids(1, 4, 2))], "line 2: 2 layers, and 3"),
    ],
)
def test_what_is_no_such_response_is_refused(tmp_path, responses, wanted):
    with pytest.raises(UserError, match=wanted):
        read(write(tmp_path / "responses.jsonl", *responses))


def test_text_that_is_no_json_is_refused_with_its_line(tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text(json.dumps(vllm("a", draw_ids(1, 4))) + "\n{oops\n")
    with pytest.raises(UserError, match="line 2"):
        read(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(UserError, match="must hold a JSON object"):
        read(path)


def test_a_domain_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path / "responses.jsonl", vllm("a", draw_ids(1, 4), domain="code"))
    with pytest.raises(UserError, match="no domain 'cod'; did you mean 'code'"):
        read(path, domain="cod")
    with pytest.raises(UserError, match="responses do not tell phases apart"):
        read(path, phase="decode")
