"""What cannot be simulated is refused with what would do, which starts, whatever the model, GPU and
engine.
"""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.commands.plan import plan_training
from simulator.commands.train import train
from simulator.config.cluster import load_kind
from simulator.config.deployment import DeploymentSpec
from simulator.config.model import load_model
from simulator.deployment.plan import make_plan
from tests.cases import cases
from tests.laws.test_training import BASE
from tests.laws.test_training_plan import QUESTION
from tests.parts import freeze

REFUSED = tomllib.loads(Path(__file__).with_name("refused.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("asked", "arguments", "said"),
    [
        pytest.param(asked, arguments, said, id=f"{asked}: {said}")
        for asked, rows in REFUSED.items()
        for *arguments, said in rows
    ],
)
def test_what_cannot_be_simulated_is_refused(tiny, asked, arguments, said):
    *names, keys = arguments
    make_of = {
        "tiny": lambda: tiny.plan(*names, **keys),
        "deployment": lambda: freeze({"cluster": "h100-sxm-8", "replicas": 1} | keys),
        "training": lambda: train(BASE | {"deployments": [BASE["deployments"][0] | keys]}),
        "training_plan": lambda: plan_training(QUESTION | keys),
    }
    with pytest.raises(UserError, match=said):
        make_of[asked]()


MODELS = (
    *("qwen3-235b-a22b", "deepseek-r1", "mixtral-8x7b", "gpt-oss-120b", "llama-3.1-70b", "glm-4.6"),
    *("minimax-m2", "nemotron-3-nano-30b-a3b", "qwen3-next-80b-a3b", "kimi-k2", "qwen3-32b"),
)
KINDS = ("h100-sxm", "l40s", "a100-sxm", "mi300x", "b200-sxm", "rtx-4090")
ENGINES = ("sglang", "sglang@0.5.0", "vllm", "vllm@0.10.1", "vllm@0.20.0", "trtllm")
FORMATS = (None, "bf16", "fp8", "fp8_block", "int4", "mxfp4", "nvfp4")


def make(table, kind):
    """The plan on the smallest cluster of a kind that holds it; skipped where none does."""
    parallel = table["parallel"]
    ranks = parallel["tp"] * parallel["attention_dp"]
    spec, _ = load_kind(kind, "test")
    size = next((one for one in sorted(spec.sizes) if one >= ranks), None)
    assume(size is not None)
    found = validate(DeploymentSpec, {**table, "cluster": f"{kind}-{size}"}, "test")
    return make_plan(found, 0, "test", Path())


def offers(message):
    """What a refusal names: changes of a deployment."""
    if "what would fit: " in message:
        pieces = message.split("what would fit: ")[1].split(", or ")
    else:
        pieces = [piece for piece in message.split("; ")[1:] if piece.endswith(" does")]
    for piece in pieces:
        changes = dict(re.findall(r'(weight_dtype|kv_dtype) = "(\w+)"', piece))
        if found := re.search(r"num_slots = (\d+)", piece):
            changes["placement"] = {"kind": "eplb", "num_slots": int(found[1])}
        if found := re.search(r"max_sequences = (\d+)", piece):
            changes["scheduling"] = {"max_sequences": int(found[1])}
        split = re.findall(r"\b(tp|attention_dp|ep) = (\d+)", piece)
        yield changes, {key: int(number) for key, number in split}


@pytest.mark.parametrize("model", MODELS)
@given(data=st.data())
@cases(2, soak=60)
def test_what_a_refusal_names_starts(model, data):
    """Every model by itself, since drawing its experts' choices takes longest; which they are
    refuses nothing, so they are those that are drawn soonest.
    """
    kind = data.draw(st.sampled_from(KINDS))
    tp, dp = data.draw(st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (1, 8), (4, 2), (16, 1)]))
    parallel = {"tp": tp, "attention_dp": dp}
    if data.draw(st.booleans()):
        parallel["ep"] = tp * dp
    keys = {
        "name": "it",
        "model": model,
        "engine": data.draw(st.sampled_from(ENGINES)),
        "weight_dtype": data.draw(st.sampled_from(FORMATS)),
        "kv_dtype": data.draw(st.sampled_from([None, None, "fp8"])),
    }
    table = {key: value for key, value in keys.items() if value is not None}
    table["parallel"] = parallel
    if load_model(model, "test").moe is not None:
        table["routing"] = {"kind": "uniform"}
    message = ""
    try:
        make(table, kind)
    except UserError as error:
        message = str(error)
    assume(message)
    assert "\n" not in message
    for changes, split in offers(message):
        try:
            make({**table, **changes, "parallel": {**parallel, **split}}, kind)
        except UserError as error:
            pytest.fail(f"{message}\nnames {changes | split}, of which is said: {error}")
