"""Training by the command line: what ``run`` and ``plan`` print and write, and which options they
refuse.
"""

import pytest

TRAINING = """
name = "small"
[training]
sequence_tokens = 512
global_batch = 8
total_tokens = 1e9
[[deployments]]
name = "MoE"
model = "olmoe-1b-7b"
cluster = "h100-sxm"
num_gpus = 4
parallel = { pp = 2, ep = 2 }
[[deployments]]
name = "dense"
dense_of = { model = "olmoe-1b-7b", equal = "active_params" }
cluster = "h100-sxm"
num_gpus = 4
parallel = { tp = 2, cp = 2 }
later = []
"""
QUESTION = """
name = "small"
[training]
sequence_tokens = 512
global_batch = 4
total_tokens = 1e9
[targets]
days = 3
[[models]]
model = "olmoe-1b-7b"
[[clusters]]
cluster = "h100-sxm"
max_gpus = 2
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "small.toml").write_text(TRAINING)
    (tmp_path / "question.toml").write_text(QUESTION)


def test_options_of_serving_are_refused_by_name(moesim, files):
    for option in (("--explain",), ("--fidelity", "rank"), ("--workers", "2")):
        code, _, err = moesim("run", "small.toml", *option)
        assert code == 2
        assert "leave it out" in err
    code, _, err = moesim("run", "small.toml", "--seeds", "2")
    assert (code, "training scenario" in err and "without a sweep" in err) == (2, True)
    code, _, err = moesim("plan", "question.toml", "--workers", "2")
    assert (code, "a plan of training does not take it" in err) == (2, True)
