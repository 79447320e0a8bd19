"""Campaigns of serving points: a file each, which claims rows and says how they were measured."""

import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.lab.validation.serving import campaigns as module
from simulator.lab.validation.serving import groups
from simulator.lab.validation.serving.campaigns import DEFAULT, load_campaigns
from simulator.lab.validation.serving.deployments import deployment_of, stream_interval
from simulator.lab.validation.serving.points import UnreadableError, read_point

OWN = """
title = "Ours"
source = "scripts of ours"
ids = ['^ours_']

[client]
shortest = 0.5
rounds = 3
source = "a load generator of ours"

[[engines.trtllm]]
when = { experts = true }
stream_interval = 4
source = "streams every four steps"

[[engines.trtllm]]
budget = { margin = 100, multiple = 256 }
source = "one prompt and 100 tokens, a multiple of 256"
"""


def point(name, **changes):
    row = {
        "id": name, "backend": "trtllm", "backend_version": "1.1.0", "system": "b200_sxm",
        "model_path": "deepseek-ai/DeepSeek-R1", "mode": "agg", "isl": 1024, "osl": 1024,
        "batch_size": 8, "tp_size": 8, "moe_tp_size": 1, "moe_ep_size": 8, "precision": "nvfp4",
    }  # fmt: skip
    return read_point({**row, **changes})


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of somebody's own, with a campaign in it."""
    folder = tmp_path / "workloads" / "campaigns"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    cached = (module.load_campaigns, deployment_of)
    for function in cached:
        function.cache_clear()
    yield folder / "ours.toml"
    for function in cached:
        function.cache_clear()


def settings(made):
    return deployment_of(made).spec.scheduling


def test_a_new_campaign_is_a_file(own):
    own.write_text(OWN)
    made = point("ours_1")
    assert made.campaign == "ours"
    assert made.shortest == 0.5
    assert load_campaigns()["ours"].client.jitter == load_campaigns()[DEFAULT].client.jitter
    assert settings(made)["token_budget"] == 1280  # 1,024 + 8 + 100
    assert stream_interval(made, deployment_of(made).model) == 4
    assert stream_interval(point("other"), deployment_of(made).model) == 1


def test_a_column_comes_before_the_id():
    assert point("dsr1_cfg1").campaign == "inferencex"
    assert point("dsr1_cfg1", campaign="default").campaign == DEFAULT
    with pytest.raises(UnreadableError, match="campaign 'mine' is not one of default, inferencex"):
        point("dsr1_cfg1", campaign="mine")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('source = "streams every four steps"', ""), "missing key"),
        (("'^ours_'", "'(ours_'"), "is no regular expression"),
        (("experts", "expert"), "unknown key 'expert'; did you mean 'experts'"),
        (("rounds = 3", "rounds = 0"), "rounds must be"),
    ],
)
def test_a_wrong_file_refuses_a_table_as_a_whole_and_says_where(own, change, reason):
    own.write_text(OWN.replace(*change))
    with pytest.raises(UserError, match=rf"ours\.toml.*{reason}"):
        groups(pd.DataFrame([{"id": "other"}]))
