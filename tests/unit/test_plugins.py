"""A wrong policy is refused before it runs, and the message says what it lacks."""

import sys

import pytest

from simulator.base import plugins, trust
from simulator.base.errors import UserError

HEAD = "from simulator.base.frozen import Frozen\n"
RIGHT = (
    "class Mine(Frozen):\n    share: float = 1.0\n    def prepare(self, moe, num_layers, "
    "rng):\n        return self\n"
)


@pytest.fixture
def policy(tmp_path, monkeypatch):
    """Write a module and build its routing policy."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trust._Allowed, "folder", tmp_path)
    package = tmp_path / "somebodys"
    package.mkdir()

    def build(name, text, **fields):
        (package / f"{name}.py").write_text(text)
        return plugins.build("routing", {"kind": f"somebodys.{name}", **fields}, "s.toml [routing]")

    yield build
    for module in [name for name in sys.modules if name.split(".")[0] == "somebodys"]:
        del sys.modules[module]


def test_a_users_own_policy_is_built_with_its_keys(policy):
    assert policy("right", HEAD + RIGHT, share=0.5).share == 0.5


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "two",
            HEAD + RIGHT + RIGHT.replace("Mine", "Other"),
            "exactly one public class derived from .*Frozen, found Mine, Other",
        ),
        ("none", HEAD, "found none"),
        ("broken", "1 / 0", "ZeroDivisionError: division by zero"),
        ("typo", "def f(:", "SyntaxError"),
        (
            "bare",
            HEAD + "class Mine(Frozen):\n    pass\n",
            r"Mine must have a method prepare\(moe, num_layers, rng\)",
        ),
        (
            "short",
            HEAD + RIGHT.replace(", num_layers, rng", ""),
            r"prepare\(moe, num_layers, rng\); its own is prepare\(moe\)",
        ),
    ],
)
def test_a_wrong_policy_says_what_is_wrong(policy, name, text, said):
    with pytest.raises(UserError, match=rf"^s\.toml \[routing\]: .*somebodys\.{name}.*{said}"):
        policy(name, text)


def test_a_wrong_field_of_a_users_policy(policy):
    with pytest.raises(UserError, match="unknown key 'shares'; did you mean 'share'"):
        policy("field", HEAD + RIGHT, shares=2.0)


def test_an_attribute_that_a_family_asks_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trust._Allowed, "folder", tmp_path)
    (tmp_path / "someones").mkdir()
    (tmp_path / "someones" / "balancer.py").write_text(
        HEAD + RIGHT.replace("moe, num_layers", "num_replicas")
    )
    with pytest.raises(
        UserError,
        match=r"balancing kind 'someones\.balancer'.*: Mine must have an attribute 'needs_load'",
    ):
        plugins.build("balancing", {"kind": "someones.balancer"}, "s")


def test_kind_is_missing_or_unknown():
    with pytest.raises(UserError, match=r"missing key 'kind'; choose one of: .*zipf"):
        plugins.build("routing", {}, "s")
    with pytest.raises(UserError, match="did you mean 'zipf'"):
        plugins.build("routing", {"kind": "zpf"}, "s")
