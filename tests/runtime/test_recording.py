"""Recordings made here: trained models, their twins, their text, and models of the transformers
library.
"""

import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="recording needs PyTorch")

import torch

from simulator import runtime
from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.commands.check import check_file
from simulator.commands.record_trace import (
    TrainedRecording,
    record_transformers,
    train_and_record,
    write_training,
)
from simulator.config.deployment import DeploymentSpec
from simulator.config.model import load_model
from simulator.deployment.plan import make_plan
from simulator.runtime.layers.attention import Chunk
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import SafetensorsWeights
from simulator.runtime.recording.comparison import (
    SAME_TIME,
    SAME_TOKENS,
    Above,
    Outcome,
    findings,
    headline,
)
from simulator.runtime.recording.corpus import OTHER, read_corpus, read_texts
from simulator.runtime.recording.huggingface import routed_ids
from simulator.runtime.recording.models import MOE, SAME_ACTIVE, SAME_TOTAL, Shape, three_models
from simulator.runtime.recording.trace_file import write_recording
from simulator.runtime.recording.training import Recipe, balance_loss

SHAPE = Shape(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_experts=4,
    top_k=2,
    intermediate_size=32,
    context=32,
    batch=4,
)
RECIPE = Recipe(num_evaluations=3)
STEPS = 40
WORDS = {
    "prose": ["the", "router", "chooses", "an", "expert", "for", "every", "token"],
    "numbers": ["0x1f", "3.14", "42", "[7]", "1e-9", "0b101"],
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Models this small gain nothing from threads, which wait for each other where the cores have
    other work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Two domains of four files each, and what is no text."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for domain, words in WORDS.items():
        (folder / domain).mkdir()
        for number in range(4):
            (folder / domain / f"{number}.txt").write_text(" ".join(rng.choice(words, 400)))
    (folder / "prose" / "picture.bin").write_bytes(b"\x00\x01" * 5000)
    (folder / "prose" / "latin.txt").write_bytes(b"\xe9t\xe9 " * 5000)
    (folder / ".hidden").write_text("not to be read " * 500)
    return folder


def trained(text, seed=3) -> TrainedRecording:
    return train_and_record(text, 1.0, STEPS, 400, seed, lambda *_: None, SHAPE, RECIPE)


@pytest.fixture(scope="module")
def made(text):
    return trained(text)


@pytest.fixture(scope="module")
def files(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    paths = {
        "recording": folder / "r.npz",
        "curve": folder / "r.csv",
        "page": folder / "r.html",
        "model": folder / "r.toml",
        "weights": folder / "r.safetensors",
    }
    write_training(made, paths["recording"], paths)
    return paths


@pytest.mark.parametrize("name", [MOE, SAME_TOTAL, SAME_ACTIVE])
def test_loss_falls_on_the_same_tokens(made, name):
    curve = made.curve[(made.curve["model"] == name) & (made.curve["run"] == SAME_TOKENS)]
    assert curve["step"].tolist() == [0, 13, 27, 40]
    assert curve["tokens"].tolist() == [step * 128 for step in curve["step"]]
    assert curve["held_out_loss"].is_monotonic_decreasing
    assert curve["held_out_loss"].iloc[-1] < curve["held_out_loss"].iloc[0] - 1
    assert curve["train_loss"].iloc[-1] < curve["train_loss"].iloc[1]
    assert curve["seconds"].is_monotonic_increasing
    assert (curve["cpu_seconds"].iloc[1:] > 0).all()


def test_dense_models_are_trained_anew_for_the_time_of_the_mixture(made):
    moe, *twins = made.outcomes
    step_s = {row.model: row.seconds / STEPS for row in made.outcomes}
    again = made.curve[made.curve["run"] == SAME_TIME]
    assert set(again["model"]) == {SAME_TOTAL, SAME_ACTIVE}
    for row in twins:
        own = again[again["model"] == row.model]
        assert abs(own["seconds"].iloc[-1] - moe.seconds) <= step_s[row.model] / 2 + 1e-9
        assert own["tokens"].iloc[-1] == row.same_time_tokens
        assert own["held_out_loss"].iloc[-1] == pytest.approx(row.same_time_loss)
        assert row.same_time_loss < own["held_out_loss"].iloc[0]
        assert row.same_time_loss - moe.held_out_loss == pytest.approx(row.same_time_above_moe.loss)
    # Until their learning rates part, both runs of a model are one: the same start and batches.
    first = made.curve[made.curve["step"] == 0].groupby("model")["held_out_loss"]
    assert (first.nunique() == 1).all()


@pytest.mark.parametrize("shape", [SHAPE, Shape()], ids=["tiny", "default"])
def test_twins_have_the_same_size_within_one_per_cent(shape):
    models = three_models(shape, "test")
    moe = models[MOE]
    assert models[SAME_TOTAL].num_parameters == pytest.approx(moe.num_parameters, rel=0.01)
    assert models[SAME_ACTIVE].num_parameters == pytest.approx(moe.num_active_parameters, rel=0.01)
    for model in models.values():
        assert (
            sum(weight.numel() for weight in Transformer(model).parameters())
            == model.num_parameters
        )


def test_the_recording_holds_what_the_routers_choose_for_the_same_text(made, files, text):
    """The model is loaded again from its files, and the text cut anew."""
    model = load_model(str(files["model"]), "test")
    transformer = Transformer(model)
    transformer.load(SafetensorsWeights(files["weights"]))
    held = read_corpus(text, 3, SHAPE.context).domains
    with np.load(files["recording"]) as recorded:
        ids_LTK, lengths, domains = (
            recorded["ids"],
            recorded["seq_lens"],
            recorded["domain"].tolist(),
        )
    assert ids_LTK.dtype == np.uint8
    assert lengths.tolist() == [SHAPE.context] * len(domains)
    first = 0
    for name in dict.fromkeys(domains):
        number = domains.count(name)
        starts = np.linspace(0, len(held[name].held_out) - SHAPE.context - 1, number).astype(int)
        cut = np.stack([held[name].held_out[start : start + SHAPE.context] for start in starts])
        with torch.no_grad():
            _, chosen = transformer(
                torch.from_numpy(cut.astype(np.int64)).flatten(), Chunk(number, SHAPE.context, 0)
            )
        assert np.array_equal(ids_LTK[:, first : first + number * SHAPE.context], chosen.numpy())
        first += number * SHAPE.context
    assert first == ids_LTK.shape[1]


def test_replay_reads_the_recording_and_its_domains(files, made):
    moe = made.models[MOE].moe
    for domain in (None, *WORDS):
        replay = plugins.build(
            "routing",
            {"kind": "replay", "trace": str(files["recording"]), "domain": domain},
            "test",
        )
        router = replay.prepare(moe, SHAPE.num_layers, np.random.default_rng(0))
        drawn_TK = router.topk_ids(1, np.full(400, 32), np.random.default_rng(0))
        load_E = np.bincount(drawn_TK.ravel(), minlength=4) / drawn_TK.size * 4
        assert load_E == pytest.approx(made.recording.load(domain)[1], abs=0.1)


def test_a_scenario_beside_the_recording_names_model_and_trace(files):
    table = {
        "name": "d",
        "model": "r.toml",
        "cluster": "h100-sxm-2",
        "parallel": {"attention_dp": 2, "ep": 2},
    }
    plan = make_plan(validate(DeploymentSpec, table, "test"), 0, "test", files["model"].parent)
    assert plan.experts is not None
    assert check_file(str(files["model"]), []).kind == "model"
    published = tomllib.loads(files["model"].read_text())["published"]
    assert published["total_parameters"] == plan.model.num_parameters


def test_the_same_seed_gives_the_same_recording_and_another_seed_another(made, text, tmp_path):
    for name, recording in (
        ("a.npz", made),
        ("b.npz", trained(text)),
        ("c.npz", trained(text, seed=4)),
    ):
        write_recording(recording.recording, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "c.npz").read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_page_says_the_result_and_fetches_nothing(files, made):
    page = files["page"].read_text(encoding="utf-8")
    assert made.headline in page
    assert "default-src &#x27;none&#x27;" in page
    payload = json.loads(re.search(r'id="payload">(.*?)</script>', page)[1])
    assert len(payload["plots"]) == 2 + 1 + len(WORDS)
    assert [len(plot["data"]) for plot in payload["plots"]] == [5, 5, 1, 1, 1]
    for name in (MOE, SAME_TOTAL, SAME_ACTIVE, *WORDS):
        assert name in page


def test_files_stay_whole_and_domains_apart(text):
    corpus = read_corpus(text, 0, 32)
    assert list(corpus.domains) == ["numbers", "prose"]
    for name, split in corpus.domains.items():
        sides = {
            side: bytes(getattr(split, side)).decode().split("\n")
            for side in ("training", "held_out")
        }
        assert len(sides["training"]) + len(sides["held_out"]) == 4
        contents = {path.read_text() for path in (text / name).glob("[0-9].txt")}
        assert set(sides["training"]) | set(sides["held_out"]) == contents


def test_many_small_domains_become_one(tmp_path):
    for number in range(12):
        (tmp_path / f"d{number:02}").mkdir()
        for part in "ab":
            (tmp_path / f"d{number:02}" / part).write_text(
                f"{number} words of text\n" * (60 - number)
            )
    domains = read_corpus(tmp_path, 0, 16).domains
    assert len(domains) == 8
    assert OTHER in domains


def test_the_standard_library_is_text_of_several_domains():
    corpus = read_corpus(None, 0, 128)
    assert len(corpus.domains) >= 3
    assert all(len(split.training) > len(split.held_out) > 0 for split in corpus.domains.values())


def test_unusable_folders_are_refused(tmp_path):
    def refused(folder):
        with pytest.raises(UserError) as caught:
            train_and_record(folder, 1.0, 1, 100, 0, lambda *_: None, SHAPE, RECIPE)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("a few words")
    assert refused(tmp_path / "none") == f"--text {tmp_path / 'none'}: no such folder"
    assert "is a file" in refused(tmp_path / "short" / "a.txt")
    assert "no text in it" in refused(tmp_path / "empty")
    assert "too little text: 11 bytes in 1 text files" in refused(tmp_path / "short")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"steps": None, "minutes": -1.0}, "--minutes -1"),
        ({"tokens": 0}, "--tokens 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(text, changes, message):
    arguments = {
        "text": text,
        "minutes": 1.0,
        "steps": 1,
        "tokens": 100,
        "seed": 0,
        "tick": lambda *_: None,
    } | changes
    with pytest.raises(UserError, match=message):
        train_and_record(**arguments, shape=SHAPE, recipe=RECIPE)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"training a model needs PyTorch: pip install 'moesim\[real\]'"
    ):
        runtime.require("torch", "training a model")


def test_balance_loss_is_one_for_even_loads_and_the_number_of_experts_for_one():
    even_TK = torch.arange(8).reshape(4, 2) % 4
    assert float(balance_loss(torch.full((4, 4), 0.25), even_TK)) == pytest.approx(1.0)
    one_TE = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 4)
    assert float(balance_loss(one_TE, torch.zeros(4, 1, dtype=torch.int64))) == pytest.approx(4.0)


def outcome(model, seconds, same_tokens, same_time, reached=None):
    """Losses beside a mixture that ends at 2.0; differences have a standard error of 0.01."""
    above = (Above(same_tokens - 2.0, 0.01), Above(same_time - 2.0, 0.01))
    return Outcome(
        model, 4, 2, 1000, seconds, 1.9, same_tokens, above[0], 500, same_time, above[1], reached
    )


def test_the_headline_and_findings_follow_the_numbers():
    moe = outcome(MOE, 10.0, 2.0, 2.0, 10.0)
    total = outcome(SAME_TOTAL, 30.0, 1.9, 2.5, 25.0)
    rows = [moe, total, outcome(SAME_ACTIVE, 8.0, 2.1, 2.05)]
    assert headline(rows) == (
        "After 10 s of its own compute the mixture of experts reached a held-out loss of 2.00 nats a byte; in the same time the dense "
        "model of the same total size reached 2.50 and the one of the same active size 2.05: the mixture of experts learned fastest."
    )
    said = findings(rows)
    assert (
        said[0] == "The dense model of the same total size needed 25 s to reach the mixture's loss."
    )
    assert said[1].startswith(
        "The dense model of the same active size did not reach the mixture's loss in any run"
    )
    assert (
        "same total size 0.100 ± 0.010 below it and the dense model of the same active size 0.100 ± 0.010 above it"
        in said[2]
    )
    assert "3.00 times as long for the dense model of the same total size and 0.80 times" in said[3]
    assert headline([moe, total, outcome(SAME_ACTIVE, 8.0, 2.1, 1.9)]).endswith(
        "the dense model of the same active size learned fastest."
    )
    for level in (1.99, 2.01):
        assert "no clear difference" in headline(
            [moe, total, outcome(SAME_ACTIVE, 8.0, 2.01, level)]
        )
    assert (
        "level with it (0.010 ± 0.010 apart)"
        in findings([moe, total, outcome(SAME_ACTIVE, 8.0, 2.01, 2.0)])[2]
    )


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


def test_a_shipped_scenario_can_name_the_shipped_recording():
    folder = Path(__file__).parents[2] / "workloads"
    routing = {"kind": "replay", "trace": "traces/stdlib-moe.npz", "domain": "tests"}
    table = {
        "name": "d",
        "model": "stdlib-moe",
        "cluster": "h100-sxm-4",
        "parallel": {"attention_dp": 4, "ep": 4},
    }
    plan = make_plan(
        validate(DeploymentSpec, table | {"routing": routing}, "test"), 0, "test", folder
    )
    model = plan.model
    assert (model.num_moe_layers, model.moe.num_experts, model.moe.top_k) == (4, 16, 2)
    assert three_models(Shape(), "stdlib-moe")[MOE].num_parameters == model.num_parameters
    with np.load(folder / "traces" / "stdlib-moe.npz") as recorded:
        assert recorded["ids"].shape == (4, 8192, 2)
        assert str(recorded["provenance"]).startswith(
            "moesim 0.1.0 trace record train --steps 400 --tokens 8192 --seed 1"
        )
        assert len(set(recorded["domain"].tolist())) == 8
