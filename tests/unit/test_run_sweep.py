"""Many settings and seeds of one scenario: which points there are, what is told of them, and that
it is the same however many processes there are.
"""

import filecmp
import json

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import UserError
from simulator.commands.run import run as run_scenario
from simulator.commands.sweep import list_points, sweep
from simulator.report.sweep_page import draw_winners, render
from simulator.results.metrics import METRICS
from simulator.results.sweep import Sweep, find_sweep
from simulator.scenario.jobs import load_scenario
from tests.small_scenario import small_scenario
from tests.unit.test_run_shards import check_equal

RATE = "workload.rate_scale"


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(small_scenario("stdlib-moe", 4))
    return str(path)


def test_points_are_every_combination_in_order(scenario):
    points, keys = list_points(
        [scenario], ["seed=5"], [f"{RATE}=1,2", "deployments.0.engine=vllm,sglang"], None, 2
    )
    assert keys == {RATE: [1, 2], "deployments.0.engine": ["vllm", "sglang"]}
    assert [(dict(p.setting)[RATE], p.seed) for p in points] == [
        (rate, seed) for rate in (1, 2) for _ in range(2) for seed in (5, 6)
    ]
    assert len({point.name for point in points}) == 8
    assert all(
        set(point.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._") for point in points
    )
    assert points[3].name.endswith("_rate_scale-1_engine-sglang_seed-6")
    assert points[3].overrides == ("seed=5", f"{RATE}=1", 'deployments.0.engine="sglang"')


def test_several_scenarios_are_a_key_of_their_own(scenario, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(small_scenario("stdlib-moe", 8))
    points, keys = list_points([scenario, str(other)], [], [], 3, 1)
    assert keys == {"scenario": [scenario, str(other)]}
    assert [dict(point.setting)["scenario"] for point in points] == [scenario, str(other)]
    assert [point.seed for point in points] == [3, 3]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["workload.rate_scale"], "must be path=value,value"),
        ([f"{RATE}="], "must be path=value,value"),
        ([f"{RATE}=1,1"], "1 is named twice"),
        ([f"{RATE}=1", f"{RATE}=2"], "a key is named twice"),
        (["seed=1,2"], "seeds are asked for by --seeds N"),
        (["workload.speed=1,2"], "unknown key 'speed'"),
        ([f"{RATE}=1,-2"], "rate_scale must be"),
        ([f"{RATE}={','.join(map(str, range(1, 1_002)))}"], "1,001 points, must be at most 1,000"),
        ([f"{RATE}=1,2,zzz"], 'rate_scale must be a number, got "zzz"'),
        (["deployments.0.engine=vllm,,sglang"], "there is an empty value"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(scenario, keys, said):
    with pytest.raises(UserError) as refused:
        list_points([scenario], [], keys, None, 1)
    assert said in str(refused.value)


def test_the_map_says_who_is_better_at_each_setting():
    won = {(1, 4): "a", (1, 8): "a", (2, 4): "b", (2, 8): None}
    points = [
        {"point": f"{rate} {tp}", "w.rate": rate, "d.tp": tp, "seed": 1, "winner": winner}
        for (rate, tp), winner in won.items()
    ]
    rows = [{"point": one["point"], "deployment": name} for one in points for name in "ab"]
    run = {"keys": {"w.rate": [1, 2], "d.tp": [4, 8]}, "points": points}
    made = Sweep(run | {"deployments": {"a": {}, "b": {}}}, pd.DataFrame(rows))
    ((_, drawn),) = draw_winners(made)
    found = {
        (int(x), int(y)): trace.name
        for trace in drawn.data
        for x, y in zip(trace.x, trace.y, strict=True)
    }
    assert found == {setting: winner or "neither" for setting, winner in won.items()}
    for point in points:
        point["winner"] = "a"
    assert not list(draw_winners(made))


@pytest.mark.slow
def test_a_point_is_the_run_that_its_command_makes_and_refused_ones_are_told(scenario, tmp_path):
    keys, folder = ["deployments.0.parallel.attention_dp=4,16"], tmp_path / "out"
    points, _ = list_points([scenario], [], keys, None, 2)
    found = sweep(scenario, folder, keys, num_seeds=2, workers=1)
    assert [("refusal" in point) for point in found.run["points"]] == [False, False, True, True]
    assert "needs 16 GPUs" in found.run["points"][2]["refusal"]
    for point in points[:2]:
        loaded = load_scenario(scenario, list(point.overrides), point.seed)
        alone = run_scenario(loaded).summary
        row = found.table[found.table["point"] == point.name]
        pd.testing.assert_frame_equal(
            row[list(METRICS)].reset_index(drop=True), alone[list(METRICS)], check_exact=True
        )
        own = json.loads((folder / "points" / point.name / "run.json").read_text())
        assert own["command"].startswith(f"moesim run {scenario} --seed {point.seed} --set dep")
        verdict = own["verdict"]
        row = row.set_index("deployment")["chance"].dropna()
        assert row.to_dict() == ({verdict["winner"]: verdict["chance"]} if len(row) else {})
    again = Sweep.read(folder)
    assert again.run == found.run
    pd.testing.assert_frame_equal(again.table, found.table, check_dtype=False)
    assert "2 of 4 points are refused" in render(again)


def test_a_sweep_of_nothing_but_refusals_is_one(scenario, tmp_path):
    keys = ["deployments.0.parallel.attention_dp=16"]
    with pytest.raises(UserError, match=r"every point is refused, the first since .*needs 16 GPUs"):
        sweep(scenario, tmp_path / "out", keys, workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_second_sweep_replaces_the_first_and_nothing_of_ones_own(scenario, tmp_path):
    folder = tmp_path / "sweep"
    for rates in ("1,2", "2,4"):
        sweep(scenario, folder, [f"{RATE}={rates}"], workers=1)
    points, _ = list_points([scenario], [], [f"{RATE}=2,4"], None, 1)
    assert sorted(entry.name for entry in (folder / "points").iterdir()) == [p.name for p in points]
    note = folder / "points" / points[0].name / "note.txt"
    note.write_text("mine")
    with pytest.raises(UserError, match=r"holds 'points/.*note.txt', which is no part"):
        sweep(scenario, folder, [f"{RATE}=2,4"], workers=1)
    assert note.read_text() == "mine"


def test_a_scenario_is_not_named_twice_and_dates_are_texts(scenario):
    with pytest.raises(UserError, match="is named twice; --seeds N"):
        list_points([scenario, scenario], [], [], None, 1)
    points, keys = list_points([scenario], [], ["name=2020-01-01,2021-01-01"], None, 1)
    assert keys == {"name": ["2020-01-01", "2021-01-01"]}
    assert points[0].overrides == ('name="2020-01-01"',)


@pytest.mark.ray
def test_as_many_processes_as_you_like_write_the_same_bytes(scenario, tmp_path):
    points, _ = list_points([scenario], [], [f"{RATE}=1,4"], None, 2)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, workers in zip(folders, (1, 2), strict=True):
        sweep(scenario, folder, [f"{RATE}=1,4"], num_seeds=2, workers=workers)
    assert filecmp.cmp(*(folder / "sweep.csv" for folder in folders), shallow=False)
    for point in points:
        for name in ("summary.csv", "requests.parquet", "steps.parquet"):
            assert filecmp.cmp(
                *(folder / "points" / point.name / name for folder in folders), shallow=False
            )


@pytest.mark.ray
def test_deployments_are_served_at_the_same_time_with_the_same_results():
    scenario = load_scenario("mixtral_vs_llama2", ["workload.num_requests=60"])
    check_equal(*(run_scenario(scenario, workers=workers) for workers in (1, 2)))


def made_up(winners, ttft_s, **facts):
    """A sweep of two rates over seeds, by who wins which point and its other ``facts``."""
    points, rows = [], []
    for number, (rate, winner) in enumerate(winners):
        name = f"{number}"
        own = {key: values[number] for key, values in facts.items()}
        points.append({"point": name, RATE: rate, "seed": number, "winner": winner} | own)
        for deployment in ("A", "B"):
            row = dict.fromkeys(METRICS, np.nan) | {"ttft_p50_s": ttft_s[number]}
            rows.append({"point": name, RATE: rate, "seed": number, "deployment": deployment} | row)
    keys = {RATE: list(dict.fromkeys(rate for rate, _ in winners))}
    return Sweep(
        {"keys": keys, "points": points, "name": "it", "deployments": {}}, pd.DataFrame(rows)
    )


@pytest.mark.parametrize(
    ("winners", "kind"),
    [
        ([(1, "A"), (2, "A")], "everywhere"),
        ([(1, "A"), (1, "A"), (1, "A")], "seeds"),
        ([(1, "A"), (1, "B"), (1, "A")], "seeds"),
        ([(1, "A"), (1, "A"), (2, "B"), (2, None)], "depends"),
    ],
)
def test_who_is_better_is_said_of_every_setting_where_it_depends_on_it(winners, kind):
    headline, *reasons = find_sweep(made_up(winners, [1.0, 1.1, 2.0, 2.0]))
    assert headline.kind == f"sweep.{kind}"
    assert all(str(one).endswith(".") for one in (headline, *reasons))
    settings = [one for one in reasons if one.kind == "sweep.at_setting"]
    assert len(settings) == 2 * (kind == "depends")


def doubt_of(finding):
    facts = finding.facts["doubt"].facts
    return facts["unsure"], facts["points"], facts["chances"]


@pytest.mark.parametrize(
    ("winners", "chances", "kind"),
    [
        ([(1, "A"), (4, "A"), (16, "A")], [0.71, 0.77, 0.76], "everywhere"),
        ([(1, "A"), (4, "A"), (16, "A")], [0.71, 0.9, None], "everywhere"),
        ([(1, "A"), (1, "A"), (1, "A")], [0.71, 0.71, 0.71], "seeds"),
        ([(1, "A"), (2, "B"), (2, None)], [0.55, 0.99, None], "depends"),
    ],
)
def test_a_sweep_is_no_surer_than_its_points(winners, chances, kind):
    found = [*find_sweep(made_up(winners, [1.0] * 3, chance=chances))]
    assert found[0].kind == f"sweep.{kind}"
    unsure = [chance for chance in chances if chance is not None and chance < 0.9]
    judged = sum(winner is not None for _, winner in winners)
    assert doubt_of(found[0]) == (len(unsure), judged, [min(unsure), max(unsure)])
    has_seeds = len({rate for rate, _ in winners}) < len(winners)
    assert ("sweep.same_error" in [one.kind for one in found]) == has_seeds
    at = [one.facts["doubt"] for one in found if one.kind == "sweep.at_setting"]
    assert [one is not None for one in at] == [True, False] * (kind == "depends")


EACH = ["rate_scale = 1", "rate_scale = 2", "rate_scale = 4"]
FEW, MANY = {"A": "8 GPUs", "B": "2 GPUs"}, {"A": "16 GPUs", "B": "2 GPUs"}


@pytest.mark.parametrize(
    ("hardware", "found"),
    [
        ([{}, {}, {}], None),
        ([FEW, FEW, FEW], [(FEW, EACH)]),
        ([{}, FEW, MANY], [(FEW, ["rate_scale = 2"]), (MANY, ["rate_scale = 4"])]),
    ],
)
def test_other_hardware_is_said_once_with_its_settings(hardware, found):
    made = made_up([(1, "A"), (2, "A"), (4, "A")], [1.0] * 3, other_hardware=hardware)
    told = [one for one in find_sweep(made) if one.kind == "sweep.other_hardware"]
    assert [one.facts["found"] for one in told] == [found] * (found is not None)
    assert {one.severity for one in told} <= {"warning"}


def test_many_settings_are_left_to_the_table_and_refused_ones_told():
    many = [*find_sweep(made_up([(rate, "AB"[rate % 2]) for rate in range(1, 31)], [1.0] * 30))]
    assert [one.facts for one in many if one.kind == "sweep.more_settings"] == [{"more": 18}]
    part = made_up([(1, "A"), (2, "A"), (4, "A")], [1.0] * 3)
    del part.run["points"][1]["winner"]
    part.run["points"][1]["refusal"] = "too large"
    assert next(find_sweep(part)).facts["has_refused"]
