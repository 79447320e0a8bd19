"""Wrong input: exit status 2, one line that says where, what and what would be right, and nothing
written.
"""

import pytest

GOOD = """
[workload]
requests = { arrivals = { kind = "poisson", rate_per_s = 50.0 }, lengths = { kind = "fixed", num_input = 100, num_output = 4 }, num_requests = 20 }

[[deployments]]
name = "moe"
model = "mixtral-8x7b"
cluster = "h100-sxm-8"
weight_dtype = "fp8"
parallel = { attention_dp = 8, ep = 8 }

[[deployments]]
name = "dense"
model = "llama-3.1-8b"
cluster = "h100-sxm-8"
"""
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def folder(moesim, tmp_path):
    return tmp_path


def refused(folder, moesim, text, *options):
    (folder / "scenario.toml").write_text(text)
    before = sorted(folder.rglob("*"))
    code, _, message = moesim("run", "scenario.toml", *options)
    assert code == 2, message
    assert len(message.strip().splitlines()) == 1, message
    assert "Traceback" not in message
    assert sorted(folder.rglob("*")) == before, "something was written"
    return message


FP8, DENSE, SPREAD = 'weight_dtype = "fp8"', 'model = "llama-3.1-8b"', "attention_dp = 8, ep = 8"
REPLAY = 'ep = 8 }\nrouting = { kind = "replay", trace = "absent.npz" }'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (FP8, 'weight_dtyp = "fp8"', ["scenario.toml", "weight_dtyp", "weight_dtype"]),
        (FP8, 'weight_dtype = "fp9"', ["weight_dtype", "fp9", "fp8"]),
        ("attention_dp = 8", 'attention_dp = "8"', ["attention_dp", "whole number", '"8"']),
        ("ep = 8", "ep = 3", ["ep (3)", "divide", "8"]),
        (SPREAD, "attention_dp = 16, ep = 16", ["16", "8"]),
        (SPREAD, "tp = 3", ["tp (3)", "32 heads"]),
        (DENSE, 'model = "llama-3.1-405b"', ["does not fit", "needs", "has", "tp = "]),
        (DENSE, DENSE + "\nparallel = { tp = 2, ep = 2 }", ["dense", "ep"]),
        (DENSE, DENSE + '\nrouting = { kind = "uniform" }', ["dense", "routing"]),
        ("ep = 8 }", REPLAY, ["absent.npz"]),
        ('name = "dense"', 'name = "moe"', ["moe", "name"]),
        ('name = "dense"', "name = ", ["scenario.toml", "line 13"]),
        ("rate_per_s = 50.0", "rate_per_s = nan", ["rate_per_s", "finite"]),
        ("num_input = 100", "num_input = 9000000", ["longest request", "KV cache holds"]),
    ],
)
def test_a_wrong_scenario(folder, moesim, old, new, said):
    assert old in GOOD
    message = refused(folder, moesim, GOOD.replace(old, new, 1))
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.csv", None, ["absent.csv"]),
        ("a.csv", AZURE + "soon,374,44\n", ["a.csv", "2", "soon"]),
    ],
)
def test_a_wrong_trace(folder, moesim, name, content, said):
    """Whatever else may be wrong with one is in test_traces."""
    if content is not None:
        (folder / name).write_text(content)
    first, last = GOOD.index("requests = "), GOOD.index("\n\n[[")
    text = GOOD[:first] + f'requests = "{name}"\nstrict = true' + GOOD[last:]
    message = refused(folder, moesim, text)
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "workload.num_request=5"], ["num_request", "num_requests"]),
        (["--set", "workload"], ["workload", "path=value"]),
        (["--set", "deployments.7.name=x"], ["7"]),
        (["--fidelity", "exact"], ["exact", "step"]),
        (["--out", "scenario.toml"], ["scenario.toml"]),
        (["--out", "mine"], ["mine"]),
    ],
)
def test_a_wrong_option(folder, moesim, options, said):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("do not touch")
    message = refused(folder, moesim, GOOD, *options)
    for words in said:
        assert words in message


def test_a_folder_or_an_unknown_name(folder, moesim):
    for name in (".", "nothing-like-it"):
        code, _, message = moesim("run", name)
        assert code == 2
        assert name in message
