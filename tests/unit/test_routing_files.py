"""Files of recorded routing that other tools write: torch.save read without torch, responses of
vLLM and SGLang, and what is refused in them.
"""

import base64
import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.config.ffns.moe import MoE
from simulator.policies.routing._sglang import read_sglang
from simulator.policies.routing._torch_file import load_torch_file
from simulator.policies.routing.replay import Replay
from tests.shared import shared_file


def same(ours, theirs):
    import torch

    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.numpy().dtype
        assert np.array_equal(ours, theirs.numpy())
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    else:
        assert ours == theirs


def test_tensors_are_read_as_torch_reads_them(tmp_path, torch):
    base = torch.arange(24, dtype=torch.int32).reshape(4, 6)
    saved = {
        "whole": base,
        "view": base[1:, ::2],
        "turned": base.T,
        "empty": base[:0],
        "scalar": torch.tensor(2.5),
        "flag": None,
    }
    saved["all"] = [
        torch.ones(2, dtype=d)
        for d in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int64, torch.half)
    ]
    torch.save(saved, tmp_path / "t.pt")
    same(load_torch_file(tmp_path / "t.pt"), torch.load(tmp_path / "t.pt", weights_only=True))


@pytest.mark.measured
@pytest.mark.parametrize("mode", ["stat", "per_token"])
def test_recorder_samples_are_read_as_torch_reads_them(mode, torch):
    path = shared_file(f"traces/formats/sglang_expert_distribution_recorder_{mode}.pt")
    same(load_torch_file(path), torch.load(path, weights_only=True))


class Harmful:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def archive(path, payload):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("t/data.pkl", payload)
        file.writestr("t/data/0", bytes(8))
    return path


@pytest.mark.parametrize("thing", [Harmful(), Path("x"), np.float64(1.0)])
def test_anything_but_plain_data_and_tensors_is_refused(tmp_path, thing, capsys):
    with pytest.raises(UserError, match=r"refused: it holds a "):
        load_torch_file(archive(tmp_path / "t.pt", pickle.dumps(thing, protocol=2)))
    assert capsys.readouterr().out == ""


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, torch):
    torch.save(torch.zeros(100), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as file:
        payload = file.read("whole/data.pkl")
    with pytest.raises(UserError, match=r"damaged|refused"):
        load_torch_file(archive(tmp_path / "t.pt", payload))


def test_a_damaged_or_foreign_archive_is_refused(tmp_path):
    with pytest.raises(UserError, match="damaged"):
        load_torch_file(archive(tmp_path / "t.pt", b"\x80\x02garbage"))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as file:
        file.writestr("readme", "hello")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        load_torch_file(tmp_path / "other.pt")


# SGLang's recorder: what cannot be used


MAP = np.array([[0, 1]])
TOKENS = {
    "forward_mode": 1,
    "extend_seq_lens": [1],
    "positions": [0],
    "topk_ids_of_layer": np.array([[[0]]]),
}


def recorder(*records):
    return {"records": [*records], "last_physical_to_logical_map": MAP}


@pytest.mark.parametrize(
    ("saved", "phase", "message"),
    [
        ({"logical_count": np.ones((3, 1, 2))}, "decode", "phase = 'decode' cannot be told apart"),
        ({"model": {}}, None, "not written by SGLang's expert distribution recorder"),
        (recorder(TOKENS), "decode", "holds no decode pass"),
        (recorder(), None, "holds no recorded pass"),
        (recorder({"forward_mode": 1}), None, "a record is not as SGLang's"),
    ],
)
def test_a_recorders_file_that_cannot_be_used_is_refused(saved, phase, message):
    with pytest.raises(UserError, match=f"dump.pt: {message}"):
        read_sglang(saved, phase, "dump.pt")


def test_counts_of_one_step_are_read_like_the_sum_of_many_and_dense_layers_are_left_out():
    counts = read_sglang({"logical_count": np.array([[0, 0], [3, 1]])}, None, "dump.pt")
    assert counts.count_DLE.tolist() == [[[3.0, 1.0]]]


# Selecting what a file does not hold


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("trace.npz", {"model": "olmoe"}, "model = 'olmoe' cannot be selected"),
        ("trace.npz", {"domain": "law"}, "the recording names no domain"),
        ("counts.npz", {"domain": "law"}, "do not tell domains apart"),
        ("trace.pt", {"domain": "law"}, "this format does not tell domains apart"),
        ("trace.json", {}, "must be a table with"),
        ("domains.npz", {}, "need an array 'domain' with 2 names"),
        ("layers.npz", {"layers": "nearest"}, "names 3 layers but holds 1"),
    ],
)
def test_selecting_what_a_file_does_not_hold_is_refused(tmp_path, name, fields, message):
    np.savez(tmp_path / "trace.npz", ids=np.zeros((2, 5, 1), dtype=np.uint8), num_experts=4)
    np.savez(tmp_path / "counts.npz", counts=np.ones((2, 4)))
    np.savez(tmp_path / "domains.npz", counts=np.ones((2, 2, 4)))
    np.savez(tmp_path / "layers.npz", counts=np.ones((1, 4)), layers=[0, 1, 2])
    (tmp_path / "trace.json").write_text("[1]")
    archive(tmp_path / "trace.pt", pickle.dumps({"logical_count": 1}, protocol=2))
    moe = MoE(kind="moe", num_experts=4, top_k=1, intermediate_size=1)
    with pytest.raises(UserError, match=message):
        Replay(trace=str(tmp_path / name), **fields).prepare(moe, 2, np.random.default_rng(0))


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
        ([vllm("a", draw_ids(1, 4)), vllm("b", draw_ids(1, 4, 2))], "line 2: 2 layers, and 3"),
    ],
)
def test_what_is_no_such_response_is_refused(tmp_path, responses, wanted):
    with pytest.raises(UserError, match=wanted):
        read(write(tmp_path / "responses.jsonl", *responses))


@pytest.mark.parametrize(
    ("more", "keys", "said"),
    [
        ("{oops\n", {}, "line 2"),
        ("[1, 2]\n", {}, "must hold a JSON object"),
        ("", {"domain": "cod"}, "no domain 'cod'; did you mean 'code'"),
        ("", {"phase": "decode"}, "responses do not tell phases apart"),
    ],
)
def test_what_responses_do_not_hold_is_refused(tmp_path, more, keys, said):
    path = write(tmp_path / "responses.jsonl", vllm("a", draw_ids(1, 4), domain="code"))
    path.write_text(path.read_text() + more)
    with pytest.raises(UserError, match=said):
        read(path, **keys)
