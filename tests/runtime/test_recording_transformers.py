"""The expert choices of models of the transformers library, recorded."""

import shutil

import numpy as np
import pytest
import torch

from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.commands.record_trace import record_transformers
from simulator.config.model import load_model
from simulator.runtime.recording.corpus import read_texts
from simulator.runtime.recording.huggingface import routed_ids
from simulator.runtime.recording.trace_file import write_recording
from tests.runtime.small_training import WORDS


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    """A folder with a tiny Mixtral of random weights, and no tokenizer."""
    transformers = pytest.importorskip("transformers", reason="needs pip install 'moesim[hf]'")
    config = transformers.MixtralConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=6,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mixtral")
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def test_ids_of_a_transformers_model_are_the_top_k_of_its_router_logits(mixtral, text, tmp_path):
    import transformers

    recording = record_transformers(str(mixtral), text, 256, 0, lambda *_: None)
    assert recording.domains == ["numbers", "prose"]
    assert recording.num_experts == 6
    assert recording.topk_ids_LTK.shape == (3, 256, 2)
    assert "bytes modulo the vocabulary" in recording.provenance
    model = transformers.MixtralForCausalLM.from_pretrained(mixtral).eval()
    ids = torch.tensor([[byte % 100 for byte in read_texts(text, 0)[0]["numbers"][:64]]])
    with torch.no_grad():
        logits = model(ids, output_router_logits=True, use_cache=False).router_logits
    for layer, logits_TE in enumerate(logits):
        best_TK = logits_TE.topk(2, dim=-1).indices.numpy()
        assert np.array_equal(np.sort(recording.topk_ids_LTK[layer, :64]), np.sort(best_TK))
    write_recording(recording, tmp_path / "m.npz")
    replay = plugins.build("routing", {"kind": "replay", "trace": str(tmp_path / "m.npz")}, "test")
    moe = load_model(str(mixtral / "config.json"), "test").moe
    assert replay.prepare(moe, 3, np.random.default_rng(0)) is not None


def test_a_model_with_a_tokenizer_reads_the_text_with_it(mixtral, text, tmp_path):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["?", *WORDS["prose"]])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "whole"
    shutil.copytree(mixtral, folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(
        folder
    )
    recording = record_transformers(str(folder), text, 128, 0, lambda *_: None)
    assert "its own tokenizer" in recording.provenance
    model = transformers.MixtralForCausalLM.from_pretrained(folder).eval()
    first = read_texts(text, 0)[0]["prose"].decode().split()[:64]
    ids_LTK = routed_ids(model, [words[word] for word in first])
    assert np.array_equal(recording.topk_ids_LTK[:, 64:], ids_LTK)


@pytest.mark.parametrize(
    "family", ["OlmoeConfig", "Qwen2MoeConfig", "Qwen3MoeConfig", "GptOssConfig"]
)
def test_routers_of_other_families_are_understood(family):
    transformers = pytest.importorskip("transformers", reason="needs pip install 'moesim[hf]'")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    experts = {
        "num_local_experts" if family == "GptOssConfig" else "num_experts": 6,
        "num_experts_per_tok": 3,
        "eos_token_id": 1,
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, family)(vocab_size=100, **sizes, **experts)
    ).eval()
    ids_LTK = routed_ids(model, list(range(50)))
    with torch.no_grad():
        logits = model(
            torch.arange(50)[None], output_router_logits=True, use_cache=False
        ).router_logits
    best_LTK = np.stack([logits_TE.topk(3, dim=-1).indices.numpy() for logits_TE in logits])
    assert np.array_equal(np.sort(ids_LTK), np.sort(best_LTK))


def test_a_dense_or_missing_transformers_model_is_refused(text, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs pip install 'moesim[hf]'")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.LlamaConfig(vocab_size=100, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is it a mixture of experts"):
        record_transformers(str(tmp_path), text, 64, 0, lambda *_: None)
    with pytest.raises(UserError, match=r"cannot load it|no such folder"):
        record_transformers(str(tmp_path / "none"), text, 64, 0, lambda *_: None)
