"""Recordings made here: trained models, their twins, and the files that a training leaves."""

import signal
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from simulator import runtime
from simulator.base import plugins
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.commands.check import check as check_file
from simulator.commands.record_training import train_and_record, write_training
from simulator.config.deployment import DeploymentSpec
from simulator.config.model import load_model
from simulator.deployment.plan import make_plan
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import SafetensorsWeights
from simulator.runtime.recording.comparison import SAME_TIME, SAME_TOKENS
from simulator.runtime.recording.corpus import read_corpus
from simulator.runtime.recording.models import MOE, SAME_ACTIVE, SAME_TOTAL, Shape, three_models
from simulator.runtime.recording.trace_file import write_recording
from simulator.runtime.recording.training import balance_loss
from tests.parts import freeze
from tests.runtime.processes import PATIENCE_S, start_moesim
from tests.runtime.small_training import RECIPE, SEEDS, SHAPE, STEPS, WORDS, trained


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
    run = made.curve[(made.curve["model"] == name) & (made.curve["run"] == SAME_TOKENS)]
    assert run["seed"].unique().tolist() == list(SEEDS)
    curve = run[run["seed"] == SEEDS[0]]
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
        ends = own.groupby("seed")["held_out_loss"].last()
        assert ends.mean() == pytest.approx(row.same_time_loss)
        assert row.same_time_loss < own["held_out_loss"].iloc[0]
        assert row.num_seeds == len(SEEDS)
        assert row.same_time_loss - moe.held_out_loss == pytest.approx(row.same_time_above_moe.loss)
    # Until their learning rates part, both runs of a model are one: the same start and batches.
    first = made.curve[made.curve["step"] == 0].groupby(["model", "seed"])["held_out_loss"]
    assert (first.nunique() == 1).all()


@pytest.mark.parametrize("shape", [SHAPE, Shape()], ids=["tiny", "default"])
def test_twins_have_the_same_size_within_one_per_cent(shape):
    models = three_models(shape, "test")
    moe = models[MOE]
    assert models[SAME_TOTAL].num_parameters == pytest.approx(moe.num_parameters, rel=0.01)
    assert models[SAME_ACTIVE].num_parameters == pytest.approx(moe.num_active_parameters, rel=0.01)


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
    assert plan.placement.experts is not None
    assert check_file(str(files["model"]), []).kind == "model"
    published = tomllib.loads(files["model"].read_text())["published"]
    assert published["total_parameters"] == plan.placement.model.num_parameters


def test_the_same_seed_gives_the_same_recording_and_another_seed_another(made, text, tmp_path):
    for name, recording in (
        ("a.npz", made),
        ("b.npz", trained(text)),
        ("c.npz", trained(text, range(4, 5))),
    ):
        write_recording(recording.recording, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "c.npz").read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_unusable_folders_are_refused(tmp_path):
    def refused(folder):
        with pytest.raises(UserError) as caught:
            train_and_record(folder, 1.0, 1, 100, range(1), lambda *_: None, SHAPE, RECIPE)
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
        ({"seeds": range(0)}, "--seeds 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(text, changes, message):
    arguments = {
        "text": text,
        "minutes": 1.0,
        "steps": 1,
        "tokens": 100,
        "seeds": range(1),
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


def test_a_shipped_scenario_can_name_the_shipped_recording():
    folder = Path(__file__).parents[2] / "workloads"
    routing = {"kind": "replay", "trace": "traces/stdlib-moe.npz", "domain": "tests"}
    table = {
        "name": "d",
        "model": "stdlib-moe",
        "cluster": "h100-sxm-4",
        "parallel": {"attention_dp": 4, "ep": 4},
    }
    plan = freeze(table | {"routing": routing}, 0, folder)
    model = plan.placement.model
    assert (model.num_moe_layers, model.moe.num_experts, model.moe.top_k) == (4, 16, 2)
    assert three_models(Shape(), "stdlib-moe")[MOE].num_parameters == model.num_parameters
    with np.load(folder / "traces" / "stdlib-moe.npz") as recorded:
        assert recorded["ids"].shape == (4, 8192, 2)
        assert str(recorded["provenance"]).startswith(
            "moesim 0.1.0 trace record train --steps 400 --tokens 8192 --seed 1"
        )
        assert len(set(recorded["domain"].tolist())) == 8


def test_stopped_it_leaves_nothing_and_no_file_of_a_run_before_is_touched(text, tmp_path):
    """Ctrl-C while learning rates are tried."""
    (tmp_path / "r.npz").write_bytes(b"of a run before")
    arguments = ["trace", "record", "train", "r.npz", "--text", str(text), "--tokens", "256"]
    stopped = start_moesim(tmp_path, *arguments, "--steps", "4000")
    lines = iter(stopped.stderr.readline, "")
    assert any("learning rates" in line for line in lines)
    stopped.send_signal(signal.SIGINT)
    assert "stopped; nothing was written" in stopped.communicate(timeout=PATIENCE_S)[1]
    assert stopped.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["r.npz"]
    assert (tmp_path / "r.npz").read_bytes() == b"of a run before"
