"""Plans with spare replicas (N+k): what is recommended has them, pays for them and adds up, and
starts; what has no room for them is refused with what would do.
"""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from simulator.base.frozen import validate
from simulator.config.capacity import Question, Spare
from simulator.planner.answer import make_answer
from simulator.planner.evaluations import deployment_of, spares_of
from simulator.planner.explore import ClusterSize
from simulator.planner.losses import list_survivors
from simulator.planner.search import search
from simulator.planner.store import Store
from tests.unit.test_plan_questions import TABLE

FAILURES = {"mtbf_gpu_hours_low": 1000.0, "repair_hours": 10.0}


def find(most=64, **changes):
    clusters = [{"cluster": "h100-sxm", "max_gpus": most, "price_per_gpu_hour": 2.0}]
    table = TABLE | {"clusters": clusters} | changes
    return search(validate(Question, table, "test"), Path(), Store(None), workers=1)


@pytest.fixture(scope="module")
def plain():
    return find()


@pytest.fixture(scope="module")
def spare():
    return find(failures=FAILURES | {"availability": 0.9999})


def test_spare_replicas_are_deployed_and_paid_for(plain, spare):
    best = spare.met[0]
    assert best.cost_per_hour > plain.met[0].cost_per_hour
    assert best.cost_per_hour == 2.0 * best.size
    needed, spares = best.cluster_size.replicas, spares_of(spare, best)
    assert spares.replicas >= 1
    assert spares_of(plain, plain.met[0]).replicas == 0
    spec = deployment_of(spare, best)
    assert spec.replicas == needed + spares.replicas
    answer = make_answer(spare)
    row = answer.recommended
    assert (row.replicas, row.spare_replicas) == (needed, spares.replicas)
    ranks = best.candidate.shape.num_ranks
    assert row.gpus_used == (needed + spares.replicas) * ranks <= row.gpus
    assert answer.spare.replica_gpus == spares.replicas * ranks
    assert answer.spare.alone_low < 0.9999 <= answer.spare.enough_low <= answer.spare.enough_high
    assert f"{needed} + {spares.replicas} replicas" in row.deployment


def test_what_is_recommended_runs_as_it_is(spare, moesim, tmp_path):
    """With random failures, as the file's own comment says."""
    (file,) = (f for f in make_answer(spare).handover.scenarios if f.file == "recommended.toml")
    (tmp_path / "recommended.toml").write_text(file.text, encoding="utf-8")
    best = spare.met[0]
    (entry,) = tomllib.loads(file.text)["deployments"]
    assert entry["replicas"] == best.cluster_size.replicas + spares_of(spare, best).replicas
    (line,) = (line for line in file.text.splitlines() if "mtbf_gpu_hours" in line)
    table = line[line.index("[{") : line.index("}]") + 2]
    code, out, err = moesim("run", "recommended.toml", "--set", f"deployments.0.failures={table}")
    assert code == 0, err
    assert f"on {entry['replicas'] * best.candidate.shape.num_ranks} GPUs" in out


def test_the_file_says_what_fails_together_too():
    shares = {"node_share": 0.1, "switch_share": 0.05}
    found = find(failures=FAILURES | shares | {"availability": 0.999})
    (file,) = (f for f in make_answer(found).handover.scenarios if f.file == "recommended.toml")
    assert "node_share = 0.1, switch_share = 0.05, nodes_per_switch = 4 }]" in file.text


def test_the_worst_losses_are_those_that_no_other_is_worse_than():
    """Replicas of four GPUs side by side on nodes of eight."""
    alone = SimpleNamespace(shape=SimpleNamespace(num_ranks=4), prefill=None)
    pools = SimpleNamespace(shape=alone.shape, prefill=alone.shape)
    gpu, node = Spare(gpus=1), Spare(nodes=1)
    assert list_survivors(alone, ClusterSize(12, 3), gpu, 8) == [ClusterSize(12, 2)]
    assert list_survivors(alone, ClusterSize(16, 3), gpu, 8) == [ClusterSize(16, 3)]
    assert list_survivors(alone, ClusterSize(16, 3), node, 8) == [ClusterSize(16, 1)]
    assert list_survivors(pools, ClusterSize(12, 2, 1), node, 8) == [ClusterSize(12, 1, 0)]
    left = list_survivors(pools, ClusterSize(12, 2, 1), gpu, 8)
    assert left == [ClusterSize(12, 2, 0), ClusterSize(12, 1, 1)]


def test_what_has_no_room_for_spare_replicas_is_refused_with_what_would_do():
    found = find(most=1, failures=FAILURES | {"availability": 0.9999})
    assert not found.met
    told = make_answer(found).headline
    assert re.search(
        r"takes 2 replicas of 1 GPU for 1 .* allow 1, with which it is 0\.990099", told
    )
