"""A user's own mixer or feed-forward block that breaks its contract is told so, in one line that
names it.
"""

import sys
import textwrap

import pytest

from simulator.base import trust
from simulator.base.errors import UserError
from simulator.config.model import load_model

MIXER = """
from simulator.config.linear import Linear
from simulator.config.mixers import ContextTerm, KVHeads, Mixer

class Own(Mixer):
    num_heads: int
    def linears(self, hidden_size):
        return (Linear("in", hidden_size, 64, "column"), Linear("out", 64, hidden_size, "row"))
    @property
    def split_heads(self):
        return self.num_heads
    def context_terms(self):
        return (ContextTerm(256.0, 256.0, 64.0, 1, num_heads=4),)
"""
FFN = """
from simulator.config.linear import Linear
from simulator.config.ffns import FFN
from simulator.config.ffns.moe import MoE

class Own(FFN):
    num_heads: int = 0
    def linears(self, hidden_size):
        return (Linear("up", hidden_size, 64, "column"), Linear("down", 64, hidden_size, "row"))
    @property
    def inner_width(self):
        return 64
"""
MODEL = """
hidden_size = 32
vocab_size = 64
layers = [{{ repeat = 2, pattern = [["m", "f"]] }}]
mixers.m = {{ {mixer} }}
ffns.f = {{ {ffn} }}
"""
GQA = 'kind = "gqa", num_heads = 4, num_kv_heads = 2, head_size = 8'
DENSE = 'kind = "dense", intermediate_size = 64'
FAMILIES = {"mixers": MIXER, "ffns": FFN}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes a kind, and loads a model of it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trust._Allowed, "folder", tmp_path)
    (tmp_path / "somebodys").mkdir()

    def run(family, text):
        (tmp_path / "somebodys" / "kind.py").write_text(text)
        own = 'kind = "somebodys.kind", num_heads = 4'
        blocks = {"mixers": (own, DENSE), "ffns": (GQA, own)}[family]
        path = tmp_path / "model.toml"
        path.write_text(MODEL.format(mixer=blocks[0], ffn=blocks[1]))
        return load_model(str(path), "test")

    yield run
    for module in [name for name in sys.modules if name.split(".")[0] == "somebodys"]:
        del sys.modules[module]


def more(body):
    """A method added to a class, in front of those that it replaces."""
    return textwrap.indent(textwrap.dedent(body), "    ")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kind_that_keeps_its_contract_is_taken(load, family):
    model = load(family, FAMILIES[family])
    (own,) = getattr(model, family).values()
    assert own.kind == "somebodys.kind"
    assert model.model_dump()[family][family[0]] == {**own.model_dump()}
    assert own.num_parameters(32) == 2 * 32 * 64
    assert "num_heads" in model.model_dump()[family][family[0]]


WRONG = [
    ("mixers", "def linears(self, hidden_size): return []", "linears()", "tuple of Linear"),
    ("mixers", "def linears(self, h): return (Linear('a', h, 0, 'row'),)", "linears()", "at least 1"),
    ("mixers", "def linears(self, h): return (Linear('a', h, h, 'rows'),)", "linears()", "column, row"),
    ("mixers", "@property\ndef split_heads(self): return 4.0", "split_heads", "whole number"),
    ("mixers", "@property\ndef kv_heads(self): return (4, 8)", "kv_heads", "KVHeads"),
    ("mixers", "def context_terms(self): return None", "context_terms()", "tuple of ContextTerm"),
    ("mixers", "def context_terms(self): return (ContextTerm(1.0, -1.0, 1.0, 1),)", "context_terms()", "at least 0"),
    ("mixers", "def context_terms(self): return (ContextTerm(1.0, 1.0, 1.0, 0),)", "context_terms()", "num_shards"),
    ("mixers", "def state_elements(self): return -1", "state_elements()", "at least 0"),
    ("mixers", "def recurrent_flops_per_token(self): return float('nan')", "recurrent_flops_per_token()", "finite"),
    ("ffns", "def linears(self, hidden_size): return None", "linears()", "tuple of Linear"),
    ("ffns", "def num_small_parameters(self, h): return 0.5", "num_small_parameters()", "whole number"),
    ("ffns", "@property\ndef inner_width(self): return -1", "inner_width", "at least 0"),
    ("ffns", "@property\ndef experts(self): return 8", "experts", "an MoE, or None"),
    ("ffns", "@property\ndef is_prunable(self): return 1", "is_prunable", "true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "body", "asked", "wanted"), WRONG)
def test_a_wrong_answer_is_told_as_the_kinds_own(load, family, body, asked, wanted):
    with pytest.raises(UserError) as refused:
        load(family, FAMILIES[family] + more(body))
    said = str(refused.value)
    assert said.startswith(f"somebodys.kind.Own.{asked} ")
    assert wanted in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MIXER.replace("def linears", "def matrices"), "Own must have a method linears(hidden_size)"),
        (MIXER.replace("split_heads", "heads"), "Own must have an attribute 'split_heads'"),
        (FFN, "Own must be derived from simulator.config.mixers.Mixer"),
        (MIXER.replace("class Own(", "class _Own("), "must define exactly one public class"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_mixer_says_what_it_lacks(load, text, said):
    with pytest.raises(
        UserError, match=r"model\.toml \[mixers\.m\]: .*'somebodys\.kind'"
    ) as refused:
        load("mixers", text)
    assert said in str(refused.value)
